//! The ways of one CPU to switch to an address space.

use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt::Display;

use arch::Cr4Flags;
use arch::paging::CR3_NO_FLUSH;
use kernels::{Report, memory, serial};
use x86_64::registers::control::Cr4;

use crate::operator;
use crate::space::{Space, wrong_reads};

/// PCIDs of the other process and of the target.
const OTHER: u64 = 1;
const TARGET: u64 = 2;
/// CR3's flags for the caching of the root itself: write-through, no caching.
const CACHING: u64 = 0x18;

/// The two processes.
#[derive(Clone, Copy)]
struct Pair {
    other: Space,
    target: Space,
}

/// A way to switch to the target, and back.
struct Way {
    name: &'static str,
    /// The bits of CR4 that it needs.
    features: Cr4Flags,
    /// Whether it executes INVPCID.
    invalidates_pcid: bool,
    /// The last action of the other process's kernel.
    before: fn(&Pair),
    /// The operand of the MOV to CR3.
    cr3: fn(&Pair) -> u64,
    /// The first action then, before the target's own page is read.
    first: fn(&Pair),
    /// The action after that.
    then: fn(&Pair),
    /// The operand of the MOV to CR3 that brings the other process back.
    back: fn(&Pair) -> u64,
}

const NONE: Cr4Flags = Cr4Flags::empty();

/// The plain one.
const PLAIN: Way = Way {
    name: "mov-cr3",
    features: NONE,
    invalidates_pcid: false,
    before: |_| (),
    cr3: |pair| pair.target.root,
    first: |_| (),
    then: |_| (),
    back: |pair| pair.other.root,
};

/// One in which both keep what is cached for them, under PCIDs of their own.
const KEPT: Way = Way {
    name: "pcid-kept",
    features: Cr4Flags::PCID,
    cr3: |pair| pair.target.root | TARGET | CR3_NO_FLUSH,
    back: |pair| pair.other.root | OTHER | CR3_NO_FLUSH,
    ..PLAIN
};

const WAYS: [Way; 20] = [
    PLAIN,
    Way {
        name: "mov-cr3-caching-bits",
        cr3: |pair| pair.target.root | CACHING,
        ..PLAIN
    },
    Way {
        name: "invlpg-before",
        before: |_| Space::invalidate_page(),
        ..PLAIN
    },
    Way {
        name: "loaded-again",
        then: |pair| {
            for _ in 0..4 {
                pair.target.visit(pair.target.root);
            }
        },
        ..PLAIN
    },
    Way {
        name: "second-root-and-back",
        then: |pair| {
            pair.target.visit(pair.target.second_root);
            pair.target.visit(pair.target.root);
        },
        ..PLAIN
    },
    // Known by now.
    Way {
        name: "second-root-first",
        cr3: |pair| pair.target.second_root,
        then: |pair| pair.target.visit(pair.target.root),
        ..PLAIN
    },
    Way {
        name: "root-read-before",
        before: |pair| pair.target.read_root(),
        ..PLAIN
    },
    Way {
        name: "root-written-before",
        before: |pair| pair.target.write_root(),
        ..PLAIN
    },
    Way {
        name: "root-written-within",
        then: |pair| pair.target.write_root(),
        ..PLAIN
    },
    // The kernel's own code and data need no walk.
    Way {
        name: "global",
        features: Cr4Flags::PAGE_GLOBAL,
        ..PLAIN
    },
    Way {
        name: "global-page-cached",
        features: Cr4Flags::PAGE_GLOBAL,
        before: |pair| pair.other.read_shared(),
        first: |pair| pair.target.read_shared(),
        ..PLAIN
    },
    Way {
        name: "all-flushed-before",
        features: Cr4Flags::PAGE_GLOBAL,
        before: |_| {
            with_features(NONE, || ());
        },
        ..PLAIN
    },
    Way {
        name: "pcid",
        features: Cr4Flags::PCID,
        cr3: |pair| pair.target.root | TARGET,
        back: |pair| pair.other.root | OTHER,
        ..PLAIN
    },
    Way {
        name: "pcid-in-common",
        features: Cr4Flags::PCID,
        cr3: |pair| pair.target.root | OTHER,
        back: |pair| pair.other.root | OTHER,
        ..PLAIN
    },
    // What was cached while the target ran is there still.
    KEPT,
    Way {
        name: "pcid-kept-global",
        features: Cr4Flags::PCID.union(Cr4Flags::PAGE_GLOBAL),
        before: |pair| pair.other.read_shared(),
        first: |pair| pair.target.read_shared(),
        ..KEPT
    },
    Way {
        name: "invpcid-address-before",
        invalidates_pcid: true,
        before: |_| Space::invalidate_pcid(0, TARGET),
        ..KEPT
    },
    Way {
        name: "invpcid-context-before",
        invalidates_pcid: true,
        before: |_| Space::invalidate_pcid(1, TARGET),
        ..KEPT
    },
    Way {
        name: "invpcid-all-before",
        invalidates_pcid: true,
        before: |_| Space::invalidate_pcid(2, 0),
        ..KEPT
    },
    Way {
        name: "invpcid-all-but-global-before",
        invalidates_pcid: true,
        before: |_| Space::invalidate_pcid(3, 0),
        ..KEPT
    },
];

impl Way {
    /// Why the CPU cannot do it, if it cannot.
    fn obstacle(&self) -> Option<&'static str> {
        if self.features.contains(Cr4Flags::PCID) && !has_pcids() {
            Some("the CPU has no PCIDs")
        } else if self.invalidates_pcid && !has_invpcid() {
            Some("the CPU has no INVPCID")
        } else {
            None
        }
    }

    /// Has the operator see `count` switches to the target and back, and goes `home`.
    fn measure(&self, name: impl Display, pair: &Pair, count: u64, home: u64) {
        operator::measure(name, || {
            let switched = self.run(pair, count);
            Space::load(home);
            switched
        });
    }

    /// Switches to the target and back `count` times.
    fn run(&self, pair: &Pair, count: u64) -> u64 {
        with_features(self.features, || {
            for _ in 0..count {
                pair.other.visit((self.back)(pair));
                (self.before)(pair);
                Space::load((self.cr3)(pair));
                (self.first)(pair);
                pair.target.read();
                (self.then)(pair);
            }
            pair.other.visit((self.back)(pair));
        });
        count
    }
}

/// Whether the CPU has process-context identifiers.
pub(crate) fn has_pcids() -> bool {
    __cpuid(1).ecx & 1 << 17 != 0
}

/// Whether the CPU has INVPCID.
fn has_invpcid() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 << 10 != 0
}

/// Does `action` with these features of CR4 and without the others that ways need, and puts CR4 back.
/// To switch PCIDs on, the one that is loaded has to be 0.
pub(crate) fn with_features(features: Cr4Flags, action: impl FnOnce()) {
    const ALL: Cr4Flags = Cr4Flags::PCID.union(Cr4Flags::PAGE_GLOBAL);
    let before = Cr4::read();
    let write = |flags: Cr4Flags| {
        // SAFETY: neither changes what is mapped; PCID is only switched on with PCID 0.
        unsafe { Cr4::write(flags) };
    };
    write((before - ALL) | features);
    action();
    write(before);
}

/// Switches to a target in all ways, each `count` times.
pub(crate) fn run(report: &mut Report, count: u64) {
    let [other, target] = Space::several::<2>();
    let pair = Pair { other, target };
    let home = memory::root();
    memory::make_global(true);
    operator::suppress(target.root);
    for way in &WAYS {
        match way.obstacle() {
            Some(why) => report.skip(way.name, why),
            None => way.measure(way.name, &pair, count, home),
        }
    }
    // From one target to another: it is the first that is counted.
    operator::suppress(other.root);
    for way in [&PLAIN, &KEPT] {
        if way.obstacle().is_none() {
            let name = format_args!("between-targets-{}", way.name);
            way.measure(name, &pair, count, home);
        }
    }
    operator::release();
    memory::make_global(false);
    report.equal(
        "each read finds what its address space has",
        wrong_reads(),
        0,
    );
}

/// Switches to a target until the operator types something: it moves this CPU about meanwhile.
pub(crate) fn run_while_moved(report: &mut Report) {
    /// Switches between two looks at the console.
    const AT_A_TIME: u64 = 20;
    let [other, target] = Space::several::<2>();
    let pair = Pair { other, target };
    let home = memory::root();
    operator::suppress(target.root);
    operator::measure("moved", || {
        let mut switched = 0;
        while serial::receive().is_none() {
            switched += PLAIN.run(&pair, AT_A_TIME);
        }
        Space::load(home);
        switched
    });
    operator::release();
    report.equal(
        "each read finds what its address space has",
        wrong_reads(),
        0,
    );
}
