//! The workspace takes the facts of the architecture from `arch` and `x86_64`: no constant with
//! the name and value of one, nor with a value that only one of them has, is defined elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use arch::cpuid::*;
use arch::*;
use bitflags::Flags;
use syn::visit::Visit;
use syn::{BinOp, Expr, Lit, Type};

/// The value of an expression of literals; `None` if it refers to something, as an alias of a
/// fact does.
fn value(expression: &Expr) -> Option<u128> {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(integer) => integer.base10_parse().ok(),
            _ => None,
        },
        Expr::Paren(inner) => value(&inner.expr),
        Expr::Cast(cast) => value(&cast.expr),
        // `Self(0x320)`: a constant of a type of one field.
        Expr::Call(call) if call.args.len() == 1 => value(&call.args[0]),
        Expr::Binary(binary) => {
            let (left, right) = (value(&binary.left)?, value(&binary.right)?);
            match binary.op {
                BinOp::Shl(_) => left.checked_shl(right.try_into().ok()?),
                BinOp::BitOr(_) => Some(left | right),
                BinOp::Add(_) => left.checked_add(right),
                BinOp::Mul(_) => left.checked_mul(right),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A constant that is defined by literals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Constant {
    name: String,
    value: u128,
}

/// A visitor that collects the constants of a source file, in functions, modules and
/// implementations too.
#[derive(Default)]
struct Constants(Vec<Constant>);

impl Constants {
    fn add(&mut self, name: &syn::Ident, of_type: &Type, expression: &Expr) {
        let is_integer = matches!(of_type, Type::Path(path) if path.path.segments.last().is_some_and(
            |last| ["u8", "u16", "u32", "u64", "usize", "Self"].iter().any(|it| last.ident == it)
        ));
        if let (true, Some(value)) = (is_integer, value(expression)) {
            self.0.push(Constant {
                name: name.to_string(),
                value,
            });
        }
    }

    fn of(source: &str) -> Vec<Constant> {
        let mut constants = Self::default();
        constants.visit_file(&syn::parse_file(source).expect("sources are valid Rust"));
        constants.0
    }
}

impl<'a> Visit<'a> for Constants {
    fn visit_item_const(&mut self, item: &'a syn::ItemConst) {
        self.add(&item.ident, &item.ty, &item.expr);
        syn::visit::visit_item_const(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'a syn::ImplItemConst) {
        self.add(&item.ident, &item.ty, &item.expr);
        syn::visit::visit_impl_item_const(self, item);
    }
}

/// Names and values that must be defined nowhere else.
#[derive(Default)]
struct Facts {
    /// Values by the names that they may be given.
    named: BTreeMap<String, BTreeSet<u128>>,
    /// Values that mean one thing only.
    distinctive: BTreeSet<u128>,
}

impl Facts {
    fn add(&mut self, name: &str, value: u128) {
        let name = name
            .trim_start_matches("IA32_")
            .trim_start_matches("MSR_")
            .to_owned();
        self.named.entry(name).or_default().insert(value);
        // Neither a small number, nor a single bit, nor a mask of the lowest bits.
        let has_pattern = value > 0xffff && !value.is_power_of_two() && value & (value + 1) != 0;
        if has_pattern {
            self.distinctive.insert(value);
        }
    }

    /// Adds the flags that `x86_64` names, by those names and by the manual's, with the
    /// register's name before them or not.
    fn add_flags<F: Flags<Bits: Into<u128>>>(&mut self, registers: &[&str], manual: &[(F, &str)]) {
        let names = F::FLAGS
            .iter()
            .map(|flag| (flag.value().bits(), flag.name()))
            .chain(manual.iter().map(|(flag, name)| (flag.bits(), *name)));
        for (bits, name) in names {
            let bits: u128 = bits.into();
            self.named.entry(name.to_owned()).or_default().insert(bits);
            for register in registers {
                self.named
                    .entry(format!("{register}_{name}"))
                    .or_default()
                    .insert(bits);
            }
        }
    }

    fn all() -> Self {
        let mut facts = Self::default();
        for file in sources(&workspace().join("arch/src")) {
            for Constant { name, value } in Constants::of(&fs::read_to_string(file).unwrap()) {
                facts.add(&name, value);
            }
        }
        facts.add_flags(
            &["CR0"],
            &[
                (Cr0Flags::PROTECTED_MODE_ENABLE, "PE"),
                (Cr0Flags::MONITOR_COPROCESSOR, "MP"),
                (Cr0Flags::EMULATE_COPROCESSOR, "EM"),
                (Cr0Flags::TASK_SWITCHED, "TS"),
                (Cr0Flags::EXTENSION_TYPE, "ET"),
                (Cr0Flags::NUMERIC_ERROR, "NE"),
                (Cr0Flags::WRITE_PROTECT, "WP"),
                (Cr0Flags::ALIGNMENT_MASK, "AM"),
                (Cr0Flags::NOT_WRITE_THROUGH, "NW"),
                (Cr0Flags::CACHE_DISABLE, "CD"),
                (Cr0Flags::PAGING, "PG"),
            ],
        );
        facts.add_flags(
            &["CR4"],
            &[
                (Cr4Flags::TIMESTAMP_DISABLE, "TSD"),
                (Cr4Flags::DEBUGGING_EXTENSIONS, "DE"),
                (Cr4Flags::PAGE_SIZE_EXTENSION, "PSE"),
                (Cr4Flags::PHYSICAL_ADDRESS_EXTENSION, "PAE"),
                (Cr4Flags::MACHINE_CHECK_EXCEPTION, "MCE"),
                (Cr4Flags::PAGE_GLOBAL, "PGE"),
                (Cr4Flags::PERFORMANCE_MONITOR_COUNTER, "PCE"),
                (Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, "UMIP"),
                (Cr4Flags::L5_PAGING, "LA57"),
                (Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS, "VMXE"),
                (Cr4Flags::PCID, "PCIDE"),
                (Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, "SMEP"),
                (Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, "SMAP"),
            ],
        );
        facts.add_flags(
            &["EFER"],
            &[
                (EferFlags::SYSTEM_CALL_EXTENSIONS, "SCE"),
                (EferFlags::LONG_MODE_ENABLE, "LME"),
                (EferFlags::LONG_MODE_ACTIVE, "LMA"),
                (EferFlags::NO_EXECUTE_ENABLE, "NXE"),
            ],
        );
        facts.add_flags(
            &["RFLAGS", "EFLAGS"],
            &[
                (RFlags::CARRY_FLAG, "CF"),
                (RFlags::CARRY_FLAG, "CARRY"),
                (RFlags::PARITY_FLAG, "PF"),
                (RFlags::AUXILIARY_CARRY_FLAG, "AF"),
                (RFlags::ZERO_FLAG, "ZF"),
                (RFlags::SIGN_FLAG, "SF"),
                (RFlags::TRAP_FLAG, "TF"),
                (RFlags::TRAP_FLAG, "TRAP"),
                (RFlags::INTERRUPT_FLAG, "IF"),
                (RFlags::DIRECTION_FLAG, "DF"),
                (RFlags::DIRECTION_FLAG, "DIRECTION"),
                (RFlags::OVERFLOW_FLAG, "OF"),
                (RFlags::NESTED_TASK, "NT"),
                (RFlags::RESUME_FLAG, "RF"),
                (RFlags::VIRTUAL_8086_MODE, "VM"),
                (RFlags::ALIGNMENT_CHECK, "AC"),
            ],
        );
        facts.add_flags(
            &["DR6"],
            &[
                (Dr6Flags::ACCESS_DETECTED, "BD"),
                (Dr6Flags::STEP, "BS"),
                (Dr6Flags::STEP, "SINGLE_STEP"),
                (Dr6Flags::SWITCH, "BT"),
                (Dr6Flags::SWITCH, "TASK_SWITCH"),
            ],
        );
        facts.add_flags(&["DR7"], &[(Dr7Flags::GENERAL_DETECT_ENABLE, "GD")]);
        facts.add_flags::<XCr0Flags>(&["XCR0"], &[]);
        facts.add_flags::<PageFaultErrorCode>(&[], &[]);
        facts.add_flags(
            &["PTE", "PAGE"],
            &[
                (PageTableFlags::USER_ACCESSIBLE, "USER"),
                (PageTableFlags::HUGE_PAGE, "LARGE"),
                (PageTableFlags::NO_EXECUTE, "NX"),
                (PageTableFlags::NO_EXECUTE, "XD"),
            ],
        );
        facts.add_flags(
            &["APIC_BASE"],
            &[
                (ApicBaseFlags::BSP, "BOOTSTRAP"),
                (ApicBaseFlags::X2APIC_ENABLE, "EXTENDED"),
                (ApicBaseFlags::X2APIC_ENABLE, "X2APIC"),
                (ApicBaseFlags::LAPIC_ENABLE, "GLOBAL_ENABLE"),
            ],
        );
        facts.add_flags::<msr::FeatureControl>(&["FEATURE_CONTROL"], &[]);
        facts.add_flags::<msr::DebugCtl>(&["DEBUGCTL"], &[]);
        facts.add_flags::<Leaf1Ecx>(&[], &[]);
        facts.add_flags::<Leaf1Edx>(&[], &[]);
        facts.add_flags::<Leaf7Ebx>(&[], &[]);
        facts.add_flags::<Leaf7Ecx>(&[], &[]);
        facts.add_flags::<Leaf7Edx>(&[], &[]);
        facts.add_flags::<Leaf7Sub1Eax>(&[], &[]);
        facts.add_flags::<LeafDSub1Eax>(&[], &[]);
        facts.add_flags::<Extended1Ecx>(&[], &[]);
        facts.add_flags::<Extended1Edx>(&[], &[]);
        for (vector, names) in [
            (ExceptionVector::Division, &["DIVIDE_ERROR", "DIVISION"][..]),
            (ExceptionVector::Debug, &["DEBUG"]),
            (ExceptionVector::NonMaskableInterrupt, &["NMI"]),
            (ExceptionVector::Breakpoint, &["BREAKPOINT"]),
            (ExceptionVector::InvalidOpcode, &["INVALID_OPCODE"]),
            (ExceptionVector::DeviceNotAvailable, &["NO_DEVICE"]),
            (ExceptionVector::Double, &["DOUBLE_FAULT"]),
            (ExceptionVector::InvalidTss, &["INVALID_TSS"]),
            (ExceptionVector::SegmentNotPresent, &["SEGMENT_NOT_PRESENT"]),
            (ExceptionVector::Stack, &["STACK", "STACK_FAULT"]),
            (ExceptionVector::GeneralProtection, &["GENERAL_PROTECTION"]),
            (ExceptionVector::Page, &["PAGE", "PAGE_FAULT"]),
            (
                ExceptionVector::AlignmentCheck,
                &["ALIGNMENT", "ALIGNMENT_CHECK"],
            ),
            (ExceptionVector::MachineCheck, &["MACHINE_CHECK"]),
        ] {
            for name in names {
                facts.add(name, vector as u128);
            }
        }
        facts
    }

    /// Whether `constant` says again what is one of these.
    fn has(&self, constant: &Constant) -> bool {
        let name = constant
            .name
            .trim_start_matches("IA32_")
            .trim_start_matches("MSR_");
        self.distinctive.contains(&constant.value)
            || self
                .named
                .get(name)
                .is_some_and(|values| values.contains(&constant.value))
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust sources below `directory`, without what is built or hidden.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("the workspace can be read") {
        let path = entry.expect("the workspace can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_fact_of_the_architecture_is_defined_again() {
    let facts = Facts::all();
    let workspace = workspace();
    let mut again = Vec::new();
    for file in sources(&workspace) {
        if file.starts_with(workspace.join("arch")) {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        // Spares the parser what has none.
        if !source.contains("const ") {
            continue;
        }
        for constant in Constants::of(&source) {
            if facts.has(&constant) {
                let file = file.strip_prefix(&workspace).unwrap().display();
                let Constant { name, value } = constant;
                again.push(format!("{file}: {name} = {value:#x}"));
            }
        }
    }
    assert!(
        again.is_empty(),
        "take these from the crates `arch` and `x86_64`:\n{}",
        again.join("\n")
    );
}

#[test]
fn a_second_definition_is_found_wherever_and_however_it_is_written() {
    let facts = Facts::all();
    for again in [
        "const EFER_LMA: u64 = 1 << 10;",
        "const CR4_PAE: u64 = 0x20;",
        "mod flags { pub const CF: u64 = 1; }",
        "fn f() { const TSC_ADJUST: u32 = 0x3b; }",
        "const MSR_NUMBER: u32 = 0xc000_0082;",
        "struct S; impl S { const LVT_TIMER: u16 = 0x320; }",
        "const NMI: u8 = 2;",
        "const ENTRY: u64 = (0x000f_ffff_ffff_f000);",
    ] {
        let constants = Constants::of(again);
        assert!(constants.iter().any(|it| facts.has(it)), "{again}");
    }
    for other in [
        "const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();",
        "const NMI: u8 = 1;",
        "const PRESENT: u64 = 7;",
        "const TIMERS: u32 = 1 << 1;",
    ] {
        let constants = Constants::of(other);
        assert!(!constants.iter().any(|it| facts.has(it)), "{other}");
    }
}
