use core::cell::Cell;

use proptest::prelude::*;

use super::*;

/// A machine in which only reading takes time: the TSC counts, the timer shows a fraction
/// of it, and now and then something else gets the CPU.
struct Machine {
    tsc: Cell<u64>,
    reads: Cell<u64>,
    tsc_hz: u64,
    timer_hz: (u64, u64),
    mask: u64,
}

impl Machine {
    fn step(&self) -> u64 {
        let reads = self.reads.get() + 1;
        self.reads.set(reads);
        let stolen = if reads.is_multiple_of(97) {
            self.tsc_hz / 5_000
        } else {
            0
        };
        self.tsc.set(self.tsc.get().wrapping_add(40 + stolen));
        self.tsc.get()
    }
}

impl Timer for &Machine {
    fn frequency(&self) -> (u64, u64) {
        self.timer_hz
    }

    fn mask(&self) -> u64 {
        self.mask
    }

    fn read(&mut self) -> u64 {
        let (numerator, denominator) = self.timer_hz;
        let count = u128::from(self.step()) * u128::from(numerator)
            / (u128::from(denominator) * u128::from(self.tsc_hz));
        // What does not count is garbage.
        count as u64 & self.mask | !self.mask & 0xaaaa_aaaa
    }
}

const HPET: ((u64, u64), u64) = ((1_000_000_000_000_000, 69_841_279), 0xffff_ffff);
const PM_TIMER: ((u64, u64), u64) = ((3_579_545, 1), 0xff_ffff);
const PIT: ((u64, u64), u64) = ((14_318_180, 12), 0xffff);

fn machine(tsc_hz: u64, (timer_hz, mask): ((u64, u64), u64), start: u64) -> Machine {
    Machine {
        tsc: Cell::new(start),
        reads: Cell::new(0),
        tsc_hz,
        timer_hz,
        mask,
    }
}

fn calibrate(machine: &Machine) -> Option<Calibration> {
    measure(&mut { machine }, Source::Hpet, || machine.step())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_frequency_is_right_within_its_error_bound_and_a_ten_thousandth(
        tsc_hz in 20_000_000u64..6_000_000_000,
        start in 0u64..u64::MAX / 4,
        timer in prop_oneof![Just(HPET), Just(PM_TIMER), Just(PIT)],
    ) {
        let machine = machine(tsc_hz, timer, start);
        let result = calibrate(&machine).unwrap();
        let off = result.frequency.get().abs_diff(tsc_hz);
        let off_ppm = off * 1_000_000 / tsc_hz;
        prop_assert!(off_ppm <= result.error_ppm, "{off_ppm} ppm off, {result:?}");
        prop_assert!(off_ppm <= 100, "{off_ppm} ppm off, {result:?}");
        let took = machine.tsc.get() - start;
        prop_assert!(took <= tsc_hz / 20, "took {took} ticks of {tsc_hz} Hz");
    }
}

/// The timer may change right after it was read, before the TSC is.
#[test]
fn the_error_bound_holds_for_a_change_before_the_reading_of_the_tsc() {
    let tsc_hz = 1_443_083_552;
    let result = calibrate(&machine(tsc_hz, PIT, 146_122_095_059_490_646)).unwrap();
    let off = result.frequency.get().abs_diff(tsc_hz);
    assert!(off * 1_000_000 <= result.error_ppm * tsc_hz, "{result:?}");
}

#[test]
fn a_timer_that_stands_still_is_found_out() {
    let machine = machine(1_000_000_000, ((0, 1), 0xffff_ffff), 0);
    assert_eq!(calibrate(&machine), None);
}

/// A processor whose last leaf is `last`, and that answers leaf `number` with these EAX, EBX and ECX.
fn processor(last: u32, leaves: &'static [(u32, [u32; 3])]) -> impl Fn(u32, u32) -> CpuIdResult {
    move |number, _| {
        let found = leaves.iter().find(|(leaf, _)| *leaf == number);
        let [eax, ebx, ecx] = found.map_or([0; 3], |(_, answer)| *answer);
        CpuIdResult {
            eax: if number == 0 { last } else { eax },
            ebx,
            ecx,
            edx: 0,
        }
    }
}

#[test]
fn without_a_timer_the_processor_is_asked() {
    let told =
        |last, leaves| by_cpuid(processor(last, leaves)).map(|it| (it.frequency.get(), it.source));
    // Ice Lake: a crystal of 38.4 MHz, times 104 / 2.
    let crystal: &[(u32, [u32; 3])] = &[(0x15, [2, 104, 38_400_000]), (0x16, [2000, 3900, 100])];
    assert_eq!(
        told(0x1b, crystal),
        Some((1_996_800_000, Source::CpuidCrystal))
    );
    // Skylake does not say what its crystal does.
    let base: &[(u32, [u32; 3])] = &[(0x15, [2, 292, 0]), (0x16, [3500, 4000, 100])];
    assert_eq!(told(0x16, base), Some((3_500_000_000, Source::CpuidBase)));
    // Westmere answers both leaves with another one's data.
    let older: &[(u32, [u32; 3])] = &[(0x15, [7, 7, 7]), (0x16, [7, 7, 7])];
    assert_eq!(told(0xb, older), None);
    let silent: &[(u32, [u32; 3])] = &[(0x15, [0, 0, 5]), (0x16, [0, 0, 0])];
    assert_eq!(told(0x16, silent), None);
}

#[test]
fn a_tsc_is_invariant_if_the_processor_says_so() {
    let says = |last, flags: u32| {
        move |number, _| CpuIdResult {
            eax: if number == 0x8000_0000 { last } else { 0 },
            ebx: 0,
            ecx: 0,
            edx: if number == 0x8000_0007 { flags } else { 0 },
        }
    };
    assert!(is_invariant(says(0x8000_0008, 0x100)));
    assert!(!is_invariant(says(0x8000_0008, 0xff)));
    assert!(!is_invariant(says(0x8000_0006, 0x100)));
}
