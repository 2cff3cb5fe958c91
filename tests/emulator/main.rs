//! Boots tarpit in an emulated machine, once a case, and talks to its console.

mod boot;
mod console;
mod kernels;
mod overhead;

fn main() {
    tests::run(tests::cases![
        boot::grub_hands_over_modules_and_options,
        boot::qemu_starts_it_by_multiboot_1,
        boot::an_unknown_option_is_named,
        boot::a_bad_option_value_is_answered_with_the_good_ones,
        boot::a_cpu_without_vmx_is_told,
        kernels::exits_and_instructions_on_devices,
        kernels::processor_modes_from_real_to_long,
        kernels::hardware_task_switches,
        kernels::apics_virtualised_by_the_processor,
        kernels::apics_in_software,
        kernels::timers_with_a_virtualised_apic,
        kernels::timers_with_an_apic_in_software,
        kernels::a_triple_fault_ends_the_vm_with_a_dump,
        console::debian_runs_and_the_console_answers_meanwhile,
        overhead::debian_boots_in_at_most_one_and_a_half_times_the_ticks,
    ]);
}
