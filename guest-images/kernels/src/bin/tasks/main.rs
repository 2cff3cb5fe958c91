//! Hardware tasks: every way from one to another, and what must hold on both sides. SDM
//! vol. 3A, "Task Management".
//!
//! The journey itself is in `journey`; its records are checked here, in long mode.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod journey;

use kernels::Report;

#[cfg(target_os = "none")]
mod checks {
    use core::ptr::{addr_of, addr_of_mut};

    use kernels::{Report, memory, platform};

    use crate::journey::{self, RECORDS, Record};

    const FLAT_CODE: u32 = 0x18;
    const FLAT_DATA: u32 = 0x10;
    const MAIN: u32 = 0x20;
    const CALLED: u32 = 0x28;
    const WRONG: u32 = 0x48;
    const CODE_16: u32 = 0x40;
    /// Behind the GDT's end.
    const NO_SEGMENT: u32 = 0x1000;

    const TSS_32: u64 = 0x89;
    const TSS_16: u64 = 0x81;
    const BUSY: u32 = 2;
    const NT: u32 = arch::RFlags::NESTED_TASK.bits() as u32;
    const TS: u32 = arch::Cr0Flags::TASK_SWITCHED.bits() as u32;
    /// DR6.BT.
    const TASK_SWITCH: u32 = arch::Dr6Flags::SWITCH.bits() as u32;

    fn descriptor(base: usize, limit: u64, access: u64) -> u64 {
        let base = base as u64;
        limit | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56
    }

    /// A page directory that maps the first 4 GiB one to one.
    fn page_directory() -> u32 {
        let table = memory::allocate().cast::<u32>();
        for entry in 0..1024 {
            // Present, writable, 4 MiB.
            // SAFETY: a fresh page has room for 1024 entries.
            unsafe { table.add(entry).write((entry as u32) << 22 | 0x83) };
        }
        table as u32
    }

    fn tss(cr3: u32, eip: usize, esp: usize, ds: u32) -> [u32; 26] {
        let mut tss = [0; 26];
        tss[0x1c / 4] = cr3;
        tss[0x20 / 4] = eip as u32;
        tss[0x24 / 4] = 2;
        tss[0x28 / 4] = 0x0707_0707;
        tss[0x38 / 4] = esp as u32;
        for (offset, selector) in [(0x48, FLAT_DATA), (0x4c, FLAT_CODE), (0x50, FLAT_DATA)] {
            tss[offset / 4] = selector;
        }
        tss[0x54 / 4] = ds;
        tss[0x64 / 4] = 104 << 16;
        tss
    }

    /// The page tables and the stacks that the tasks run with.
    pub(crate) struct Setting {
        main_cr3: u32,
        called_cr3: u32,
        called_stack: u32,
        main_stack: u32,
    }

    pub(crate) fn prepare() -> Setting {
        let stacks = addr_of!(journey::tasks_stacks) as usize;
        let stack = |number: usize| stacks + 4096 * number;
        let (main_cr3, called_cr3) = (page_directory(), page_directory());
        let mut called_16 = [0u16; 22];
        called_16[0x10 / 2] = 2;
        called_16[0x1a / 2] = 0xfff0;
        for (offset, selector) in [
            (0x22, FLAT_DATA),
            (0x24, CODE_16),
            (0x26, FLAT_DATA),
            (0x28, FLAT_DATA),
        ] {
            called_16[offset / 2] = selector as u16;
        }
        let task_gate = u64::from(CALLED) << 16 | 0x85 << 40;
        let interrupt_gate = |handler: usize| {
            handler as u64 & 0xffff
                | u64::from(FLAT_CODE) << 16
                | 0x8e << 40
                | (handler as u64 >> 16) << 48
        };
        let mut idt = [0; 256];
        idt[0x40] = task_gate;
        idt[13] = task_gate;
        idt[1] = interrupt_gate(journey::tasks_debug as *const () as usize);
        idt[10] = interrupt_gate(journey::tasks_invalid_tss as *const () as usize);
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            descriptor(addr_of!(journey::tasks_main_tss) as usize, 103, TSS_32),
            descriptor(addr_of!(journey::tasks_called_tss) as usize, 103, TSS_32),
            descriptor(addr_of!(journey::tasks_called_16_tss) as usize, 43, TSS_16),
            task_gate,
            descriptor(journey::tasks_called_16 as *const () as usize, 0xffff, 0x9b),
            descriptor(addr_of!(journey::tasks_wrong_tss) as usize, 103, TSS_32),
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let handler = journey::tasks_called as *const () as usize;
        // SAFETY: one CPU, and nobody looks at these before the journey.
        unsafe {
            addr_of_mut!(journey::tasks_gdt).write(gdt);
            addr_of_mut!(journey::tasks_idt).write(idt);
            addr_of_mut!(journey::tasks_main_tss).write(tss(main_cr3, 0, 0, 0));
            addr_of_mut!(journey::tasks_called_tss).write(tss(
                called_cr3,
                handler,
                stack(2),
                FLAT_DATA,
            ));
            addr_of_mut!(journey::tasks_wrong_tss).write(tss(
                called_cr3,
                handler,
                stack(3),
                NO_SEGMENT,
            ));
            addr_of_mut!(journey::tasks_called_16_tss).write(called_16);
            addr_of_mut!(journey::tasks_cr3).write(main_cr3);
            // QEMU's own emulation does not know the T flag.
            addr_of_mut!(journey::tasks_with_trap).write(u32::from(!platform::is_tcg()));
        }
        Setting {
            main_cr3,
            called_cr3,
            called_stack: stack(2) as u32,
            main_stack: stack(1) as u32,
        }
    }

    pub(crate) fn go() -> [Record; RECORDS] {
        // SAFETY: the tables are prepared; the journey comes back with everything as it was.
        unsafe {
            journey::tasks_run();
            addr_of!(journey::tasks_records).read()
        }
    }

    pub(crate) fn check(report: &mut Report, setting: &Setting, records: &[Record]) {
        let mut station = 0;
        let mut next = || {
            station += 1;
            records[station - 1]
        };
        for name in ["CALL", "second CALL"] {
            called(report, name, &next(), setting, true);
            returned(report, name, &next(), setting, 0x1234_5678);
        }
        let jumped = next();
        called(report, "JMP", &jumped, setting, false);
        report.equal(
            "JMP: the main task is free, the other busy",
            jumped.types,
            0x8b89,
        );
        returned(report, "JMP", &next(), setting, 0x1234_5678);
        called(report, "INT", &next(), setting, true);
        returned(report, "INT", &next(), setting, 0x1234_5678);
        let faulted = next();
        called(report, "#GP", &faulted, setting, true);
        report.equal("#GP: error code", faulted.eax, 0x1234);
        returned(report, "#GP", &next(), setting, 0x1234);
        returned(report, "16-bit TSS", &next(), setting, 0x9abc_def0);
        // SAFETY: the journey is over.
        let (count_16, restarts) = unsafe {
            (
                addr_of!(journey::tasks_count_16).read(),
                addr_of!(journey::tasks_restarts).read(),
            )
        };
        report.equal("16-bit TSS: the task ran", count_16, 1);
        let wrong = next();
        report.equal("wrong DS: #TS belongs to the new task", wrong.tr, WRONG);
        report.equal("wrong DS: error code", wrong.eax, NO_SEGMENT);
        returned(report, "wrong DS", &next(), setting, 0x9abc_def0);
        if platform::is_tcg() {
            report.skip("T flag", "QEMU does not know it");
            report.equal("tasks go on where they left", restarts, 4);
            return;
        }
        let trapped = next();
        report.equal("T flag: #DB in the new task", trapped.tr, CALLED);
        report.equal("T flag: DR6.BT", trapped.eax & TASK_SWITCH, TASK_SWITCH);
        called(report, "T flag", &next(), setting, true);
        returned(report, "T flag", &next(), setting, 0x9abc_def0);
        report.equal("tasks go on where they left", restarts, 5);
    }

    fn called(report: &mut Report, name: &str, record: &Record, setting: &Setting, nested: bool) {
        report.equal(format_args!("{name}: TR"), record.tr, CALLED);
        report.equal(format_args!("{name}: CR3"), record.cr3, setting.called_cr3);
        report.equal(format_args!("{name}: CR0.TS"), record.cr0 & TS, TS);
        report.equal(
            format_args!("{name}: ESP"),
            record.esp,
            setting.called_stack,
        );
        let nt = if nested { NT } else { 0 };
        report.equal(format_args!("{name}: NT"), record.eflags & NT, nt);
        if nested {
            report.equal(format_args!("{name}: back link"), record.link, MAIN);
            report.equal(format_args!("{name}: both busy"), record.types, 0x8b8b);
        }
    }

    fn returned(report: &mut Report, name: &str, record: &Record, setting: &Setting, eax: u32) {
        report.equal(format_args!("{name}, back: TR"), record.tr, MAIN);
        report.equal(
            format_args!("{name}, back: CR3"),
            record.cr3,
            setting.main_cr3,
        );
        report.equal(
            format_args!("{name}, back: ESP"),
            record.esp,
            setting.main_stack,
        );
        report.equal(format_args!("{name}, back: NT"), record.eflags & NT, 0);
        report.equal(format_args!("{name}, back: EAX"), record.eax, eax);
        report.equal(
            format_args!("{name}, back: busy"),
            record.types >> 8 & BUSY | record.types & BUSY,
            BUSY,
        );
    }
}

fn run(report: &mut Report) {
    #[cfg(target_os = "none")]
    {
        let setting = checks::prepare();
        let records = checks::go();
        checks::check(report, &setting, &records);
    }
    #[cfg(not(target_os = "none"))]
    let _ = report;
}

kernels::kernel!(run);
