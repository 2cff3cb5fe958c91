//! Boots tarpit in an emulated machine, once a case, and talks to its console.

mod bad_input;
mod boot;
mod clocks;
mod console;
mod detector;
mod families;
mod fatal;
mod firmware;
mod foreign;
mod fuzz;
mod hops;
mod isolation;
mod kernels;
mod memory;
mod overhead;
mod seabios;
mod smp;
mod suppression;
mod tracking;
mod userland;
mod virtio;

fn main() {
    // What each needs (see `tests::Needs`) and what it is. Long ones first, so that no machine waits
    // for the last of them.
    tests::run(tests::cases![
        Any: virtio::debian_reads_and_writes_disks,
        Bochs: suppression::debian_slows_one_process_and_has_no_complaint,
        Any: userland::debian_boots_from_its_disk_and_serves_another,
        Any: boot::grub_hands_over_modules_and_options,
        QemuTcg: boot::qemu_starts_it_by_multiboot_1,
        QemuTcg: boot::an_unknown_option_is_named,
        QemuTcg: boot::a_bad_option_value_is_answered_with_the_good_ones,
        QemuTcg: boot::a_cpu_without_vmx_is_told,
        Bochs: boot::a_fatal_error_restarts_the_machine_if_it_is_told_to,
        Bochs: boot::a_32_bit_cpu_is_told,
        Bochs: boot::a_machine_without_com1_has_its_console_at_com2,
        Bochs: boot::the_console_is_where_firmware_has_it,
        Bochs: boot::a_cpu_that_does_not_start_is_named_and_left_out,
        Any: bad_input::without_a_module_it_asks_for_one,
        Any: bad_input::a_module_that_is_no_kernel_is_told_what_it_is,
        Any: bad_input::a_module_that_does_not_say_what_it_is_is_told_how,
        Any: bad_input::a_vm_too_small_for_its_kernel_is_told_what_it_needs,
        Any: bad_input::a_machine_too_small_for_its_vms_says_what_is_free,
        Any: bad_input::a_truncated_initrd_is_found_before_the_guest_starts,
        Any: memory::a_vm_that_does_not_fit_is_left_out_and_the_other_runs,
        Any: memory::a_vm_whose_ram_lies_in_two_pieces_has_all_of_it,
        Bochs: fatal::a_fault_of_its_own_stops_all_cpus_and_tells_where_they_were,
        Bochs: firmware::an_x2apic_stays_one,
        Bochs: firmware::what_it_leaves_armed_has_no_effect,
        Any: seabios::boots_a_disk_and_is_there_again_after_a_reset,
        Any: kernels::exits_and_instructions_on_devices,
        Any: kernels::processor_modes_from_real_to_long,
        Any: kernels::hardware_task_switches,
        Any: kernels::processors_start_after_init,
        Any: kernels::apics_virtualized_by_the_processor,
        Any: kernels::apics_in_software,
        Bochs: kernels::apics_on_the_oldest_processor,
        Bochs: kernels::exits_on_a_processor_without_tsc_scaling,
        Bochs: kernels::timers_with_a_virtualized_apic,
        Bochs: kernels::timers_with_an_apic_in_software,
        Any: kernels::interrupts_come_only_where_they_are_let_in,
        Bochs: kernels::controls_of_speculation_are_those_of_the_processor,
        Any: kernels::a_triple_fault_ends_the_vm_with_a_dump,
        Any: clocks::agree_at_all_rates_with_tsc_scaling,
        Any: clocks::agree_at_all_rates_without_tsc_scaling,
        Bochs: isolation::misbehavior_costs_a_vm_on_another_cpu_nothing,
        Bochs: isolation::misbehavior_costs_a_vm_on_the_same_cpu_its_fair_share,
        Bochs: fuzz::a_guest_that_does_what_it_likes_costs_its_neighbor_nothing,
        Bochs: isolation::weights_and_caps_are_what_vms_get,
        Bochs: isolation::a_vm_that_sleeps_is_served_soon_after_it_wakes,
        Bochs: isolation::a_paused_vm_stands_still_and_a_restarted_one_begins_anew,
        Bochs: isolation::no_command_pauses_a_vm,
        Any: tracking::others_exit_no_more_beside_a_target_that_sleeps,
        Any: tracking::each_switch_to_a_target_is_seen,
        Any: tracking::each_switch_of_two_vcpus_is_seen,
        Bochs: families::processes_that_hop_by_fork_and_by_exec_stay_suppressed,
        Bochs: families::processes_that_hop_under_32_bit_paging_stay_suppressed,
        Any: smp::eight_vcpus_start_on_two_cpus,
        Any: smp::no_vcpu_sees_time_go_back_under_suppression,
        Any: smp::a_vm_that_crashes_or_spins_leaves_the_others_alone,
        Any: detector::a_program_finds_a_process_and_a_rule_another,
        Any: console::debian_runs_and_the_console_answers_meanwhile,
        Any: virtio::debians_reach_those_in_their_network,
        Any: foreign::xen_starts_its_processors_and_tests_the_ioapic,
        Bochs: foreign::memtest_finds_no_error_with_two_processors,
        Any: foreign::mach_has_two_tasks_take_turns_and_one_is_suppressed,
        Bochs: overhead::debian_boots_in_at_most_one_and_a_half_times_the_ticks,
        Bochs: overhead::operations_cost_no_more_than_they_may,
    ]);
}
