//! A kernel with processes that fork, exec, end and share memory, and who is taken for a member.
//!
//! The kernel gives memory that was freed last to who asks next, places programs at the same addresses all the
//! time, and so makes processes as hard to tell apart as can be.

use std::collections::BTreeMap;
use std::vec::Vec;

use arch::paging::PAGE_SIZE;
use devices::time::{Hertz, HostTicks};
use proptest::prelude::*;

use super::super::address_space::RootFormat;
use super::super::notice::{End, Subject};
use super::super::order::{Defaults, Follow, Order};
use super::super::pages::mapping;
use super::super::private_pages::PrivatePage;
use super::super::{Directive, Event, Factor, Factors};
use super::*;
use crate::test_ram::TestRam;

const TSC: Hertz = Hertz::new(1_000_000_000);
const MS: u64 = 1_000_000;
const LONG: RootFormat = RootFormat::Long;
const FRAMES: u64 = 1024;

const DATA: u64 = 0x60_0000;
const HEAP: u64 = 0x1000_0000;
const SHARED: u64 = 0x7000_0000_0000;
const STACK: u64 = 0x7fff_ffff_e000;

#[derive(Clone, Copy, Debug)]
struct Page {
    frame: u64,
    private: bool,
    writable: bool,
}

#[derive(Clone, Debug)]
struct Process {
    root: u64,
    pages: BTreeMap<u64, Page>,
    /// The tables below the root.
    tables: Vec<u64>,
    kernel_stack: u64,
    lives: bool,
    /// Whether it has been loaded since it was made.
    has_run: bool,
    /// Whether it descends from the process that was named.
    is_family: bool,
    /// The time at which it was made, or became a new program; `None` if its root was nobody's just
    /// before, so that it is not mistaken for another one's.
    made_at: Option<u64>,
}

struct Kernel {
    ram: TestRam,
    /// Free frames: the last one is given away first.
    free: Vec<u64>,
    users: BTreeMap<u64, u32>,
    /// The time at which each frame was free last.
    freed: BTreeMap<u64, u64>,
    processes: Vec<Process>,
    current: usize,
    suppression: Suppression,
    directive: Directive,
    judged: Option<Root>,
    judged_at: u64,
    now: u64,
    counter: u64,
}

fn root(cr3: u64) -> Root {
    Root::new(cr3, LONG)
}

fn order(follow: Follow) -> Order {
    Order {
        follow,
        ..Order::new(
            Factors::both(Factor::new(1000).unwrap()),
            Defaults::default(),
        )
    }
}

impl Kernel {
    /// A kernel with `count` processes of the same program, of which the first runs.
    fn new(count: usize) -> Self {
        let mut kernel = Self {
            ram: TestRam::new((FRAMES * PAGE_SIZE) as usize),
            free: (1..FRAMES).rev().map(|frame| frame * PAGE_SIZE).collect(),
            users: BTreeMap::new(),
            freed: BTreeMap::new(),
            processes: Vec::new(),
            current: 0,
            suppression: Suppression::new(Defaults::default(), 1, TSC, HostTicks(0)),
            directive: Directive::NONE,
            judged: None,
            judged_at: 0,
            now: 0,
            counter: 0,
        };
        for _ in 0..count {
            kernel.start();
        }
        kernel.processes[0].has_run = true;
        kernel.report(Event::OnCpu(Self::kernel(0, false)));
        kernel
    }

    /// Makes a process of the program.
    fn start(&mut self) -> usize {
        let process = self.empty_process();
        self.processes.push(process);
        let number = self.processes.len() - 1;
        self.load_program(number);
        number
    }

    fn empty_process(&mut self) -> Process {
        let number = self.processes.len() as u64;
        let root = self.allocate();
        let was_used = |&at: &u64| self.now < at + TSC.get() / super::super::non_targets::GOOD_FOR;
        let made_at = self
            .freed
            .get(&root)
            .filter(|at| was_used(at))
            .map(|_| self.now);
        Process {
            root,
            made_at,
            pages: BTreeMap::new(),
            tables: Vec::new(),
            // The stacks are beside each other, as close as they get.
            kernel_stack: 0xffff_c900_0000_0000 + number * 0x4000 + 0x3c00,
            lives: true,
            has_run: false,
            is_family: false,
        }
    }

    fn load_program(&mut self, number: usize) {
        for address in [STACK, STACK - PAGE_SIZE, DATA, DATA + PAGE_SIZE, HEAP] {
            self.add_page(number, address, true);
            self.fill(number, address);
        }
    }

    fn allocate(&mut self) -> u64 {
        let frame = self.free.pop().expect("memory");
        self.users.insert(frame, 1);
        self.ram
            .write(vmx::addr::GuestPhysAddr(frame), &[0; PAGE_SIZE as usize])
            .unwrap();
        frame
    }

    fn drop_frame(&mut self, frame: u64) {
        let users = self.users.get_mut(&frame).unwrap();
        *users -= 1;
        if *users == 0 {
            self.users.remove(&frame);
            self.freed.insert(frame, self.now);
            self.free.push(frame);
        }
    }

    fn add_page(&mut self, number: usize, address: u64, private: bool) {
        let frame = self.allocate();
        self.set_page(
            number,
            address,
            Page {
                frame,
                private,
                writable: true,
            },
        );
    }

    fn set_page(&mut self, number: usize, address: u64, page: Page) {
        self.processes[number].pages.insert(address, page);
        let mut table = self.processes[number].root;
        for shift in [39, 30, 21] {
            let slot = table + (address >> shift & 0x1ff) * 8;
            let mut next = self.ram.read_u64(vmx::addr::GuestPhysAddr(slot)).unwrap();
            if next == 0 {
                let new = self.allocate();
                self.processes[number].tables.push(new);
                next = new | 0x67;
                self.ram.write_u64(slot, next);
            }
            table = next & !0xfff;
        }
        let entry = page.frame | if page.writable { 0x67 } else { 0x65 };
        self.ram
            .write_u64(table + (address >> 12 & 0x1ff) * 8, entry);
    }

    /// Writes something new to a page, whoever may.
    fn fill(&mut self, number: usize, address: u64) {
        self.counter += 1;
        let frame = self.processes[number].pages[&address].frame;
        self.ram
            .write_u64(frame + 8 * (self.counter % 512), self.counter);
    }

    /// The current process writes.
    fn write(&mut self, address: u64) {
        let number = self.current;
        let Some(&page) = self.processes[number].pages.get(&address) else {
            return;
        };
        if !page.writable {
            let frame = if self.users[&page.frame] == 1 {
                page.frame
            } else {
                let copy = self.allocate();
                let mut contents = [0; PAGE_SIZE as usize];
                self.ram
                    .read(vmx::addr::GuestPhysAddr(page.frame), &mut contents)
                    .unwrap();
                self.ram
                    .write(vmx::addr::GuestPhysAddr(copy), &contents)
                    .unwrap();
                self.drop_frame(page.frame);
                copy
            };
            let page = Page {
                frame,
                writable: true,
                ..page
            };
            self.set_page(number, address, page);
        }
        self.fill(number, address);
    }

    /// The current process forks, which takes its time; returns the child, which has not run.
    fn fork(&mut self) -> usize {
        self.now += LEAST_FORK;
        let parent = self.current;
        let mut child = self.empty_process();
        child.is_family = self.processes[parent].is_family;
        self.processes.push(child);
        let child = self.processes.len() - 1;
        for (address, page) in self.processes[parent].pages.clone() {
            let page = Page {
                writable: page.writable && !page.private,
                ..page
            };
            *self.users.get_mut(&page.frame).unwrap() += 1;
            self.set_page(parent, address, page);
            self.set_page(child, address, page);
        }
        child
    }

    fn empty(&mut self, number: usize) {
        let process = &mut self.processes[number];
        let root = process.root;
        let pages = core::mem::take(&mut process.pages);
        let tables = core::mem::take(&mut process.tables);
        for page in pages.into_values() {
            self.drop_frame(page.frame);
        }
        for table in tables.into_iter().rev() {
            self.drop_frame(table);
        }
        self.ram
            .write(vmx::addr::GuestPhysAddr(root), &[0; 2048])
            .unwrap();
    }

    /// The current process becomes the program anew.
    fn exec(&mut self) {
        let number = self.current;
        let old = self.processes[number].clone();
        self.processes[number].root = self.allocate();
        self.processes[number].pages.clear();
        self.processes[number].tables.clear();
        // The arguments are there before the address spaces are exchanged.
        self.add_page(number, STACK, true);
        self.fill(number, STACK);
        self.load_cr3(old.kernel_stack, old.kernel_stack - 0x40, Thread::User);
        let new = core::mem::replace(&mut self.processes[number], old);
        self.empty(number);
        let old_root = self.processes[number].root;
        self.processes[number] = new;
        self.drop_frame(old_root);
        for address in [STACK - PAGE_SIZE, DATA, DATA + PAGE_SIZE, HEAP] {
            self.add_page(number, address, true);
            self.fill(number, address);
        }
    }

    /// The current process ends, and `next` runs.
    fn exit(&mut self, next: usize) {
        let number = self.current;
        self.empty(number);
        self.processes[number].lives = false;
        self.switch(next);
        let root = self.processes[number].root;
        self.drop_frame(root);
    }

    fn report(&mut self, event: Event) {
        self.directive = self
            .suppression
            .report(&self.ram, 0, event, HostTicks(self.now));
        self.suppression.clock_changed(HostTicks(self.now), 0);
    }

    fn see(&mut self, loaded: bool, context: Context, thread: Thread) {
        let root = root(self.processes[self.current].root);
        self.judged = Some(root);
        self.judged_at = self.now;
        self.report(Event::Seen(Observation {
            root: Some((root, LONG)),
            loaded,
            halted: false,
            context,
            thread,
            not_resumed: false,
        }));
    }

    fn kernel(rsp: u64, interruptible: bool) -> Context {
        Context {
            user_mode: false,
            interruptible,
            rsp,
        }
    }

    /// The kernel loads the current process's root with its stack pointer at `rsp`, which is `then` when it
    /// takes interrupts.
    fn load_cr3(&mut self, rsp: u64, then: u64, thread: Thread) {
        self.now += 2_000;
        self.processes[self.current].has_run = true;
        let root = root(self.processes[self.current].root);
        let is_walked = self.suppression.targets().of(root).is_some();
        if self.directive.loaded_member.is_some() || self.directive.lookout.is_some() || is_walked {
            self.see(true, Self::kernel(rsp, false), Thread::Unknown);
        }
        self.now += 200;
        if self.directive.exchanged_at.is_some() {
            self.see(false, Self::kernel(then, true), thread);
        }
    }

    /// Switches to process `to`.
    fn switch(&mut self, to: usize) {
        let rsp = self.processes[self.current].kernel_stack;
        self.current = to;
        let then = self.processes[to].kernel_stack;
        self.load_cr3(rsp, then, Thread::User);
    }

    /// The current process runs on in user mode for a while, until a timer interrupts it.
    fn tick(&mut self, ticks: u64) {
        self.now += ticks;
        let current = Some(root(self.processes[self.current].root));
        let is_known = self.judged == current || !self.directive.judges_new_roots;
        let is_judged = is_known && HostTicks(self.now) < self.directive.judged_until;
        if self.directive.loaded_member.is_some()
            || self.directive.lookout.is_some()
            || !is_judged && self.directive.judged_until.0 != u64::MAX
        {
            let user = Context {
                user_mode: true,
                interruptible: true,
                rsp: STACK + 0x800,
            };
            self.see(false, user, Thread::Unknown);
        }
    }

    /// The current process runs, and writes most of its pages.
    fn compute(&mut self) {
        for address in [STACK, DATA] {
            self.write(address);
        }
        self.tick(MS);
    }

    fn suppress(&mut self, number: usize, follow: Follow) {
        self.processes[number].is_family = true;
        let seen: Vec<_> = self.processes.iter().map(|it| root(it.root)).collect();
        self.suppression
            .suppress(
                &self.ram,
                root(self.processes[number].root),
                LONG,
                order(follow),
                &seen,
                HostTicks(self.now),
            )
            .unwrap();
        self.see(
            false,
            Self::kernel(self.processes[self.current].kernel_stack, true),
            Thread::User,
        );
    }

    fn is_member(&self, number: usize) -> bool {
        let target = self
            .suppression
            .targets()
            .of(root(self.processes[number].root));
        target.is_some()
    }

    /// There is a page of the process, which it may not write, that a member has as well, or had, and that has
    /// been the same memory since. (What a member had may be free and be somebody else's by now, of the family
    /// or not, and its root too: then it is no sign, and its contents are others, or it was not frozen.)
    fn is_recognizable(&self, number: usize) -> bool {
        let Some(target) = self.suppression.targets.get(0) else {
            return false;
        };
        let pages = &self.processes[number].pages;
        let has = |address: u64, frame: u64| {
            pages
                .get(&address)
                .is_some_and(|page| page.frame == frame && page.private && !page.writable)
        };
        let now = HostTicks(self.now);
        let mut members = target.living().flat_map(|it| {
            let root = it.root(LONG);
            let is_loaded = self.processes[self.current].root == root.address().0;
            let is_kept = move |page: &PrivatePage| {
                let own = mapping(&self.ram, root, LONG, page.address);
                let is_same = own.is_some_and(|own| own.frame == page.frame && !own.writable);
                if is_same && page.is_frozen {
                    page.has_same_contents(&self.ram)
                } else {
                    is_same && is_loaded || page.stands(&self.ram)
                }
            };
            it.pages.iter().filter(is_kept)
        });
        let mut left = target.left.iter();
        members.any(|it| has(it.address, it.frame))
            || left.any(|it| {
                has(it.page.address, it.page.frame) && it.stands(&self.ram, 5_000 * MS, now)
            })
    }

    /// No living process is a member, and none runs as one, that is not of the family.
    ///
    /// One that has not run yet may have the root of a member that has ended unseen, as a new program leaves
    /// its old root behind. It is not taken for that member: a load of such a root always exits, and
    /// is looked at before the process has executed anything. Then this holds.
    fn no_other_is_a_member(&self) -> bool {
        let have_run = self.processes.iter().filter(|it| it.lives && it.has_run);
        let mut others = have_run.filter(|it| !it.is_family);
        others.all(|it| self.suppression.targets().of(root(it.root)).is_none())
            && (self.processes[self.current].is_family || !self.directive.target_in)
    }

    fn notices(&mut self) -> Vec<Subject> {
        let now = HostTicks(self.now);
        self.suppression
            .take_notices(now)
            .map(|it| it.subject)
            .filter(|it| !matches!(it, Subject::LimitedByBudget))
            .collect()
    }
}

/// A kernel in which the first of three processes is a target and runs.
fn followed(follow: Follow) -> Kernel {
    let mut kernel = Kernel::new(3);
    kernel.suppress(0, follow);
    kernel.compute();
    assert!(kernel.is_member(0) && kernel.directive.target_in);
    kernel
}

#[test]
fn a_child_that_runs_next_is_a_member_before_it_has_run() {
    let mut kernel = followed(Follow::All);
    let child = kernel.fork();
    kernel.switch(child);
    assert!(kernel.is_member(child) && kernel.directive.target_in);
    let (parent, member) = (kernel.processes[0].root, kernel.processes[child].root);
    let joined = Subject::Joined {
        member: root(member),
        parent: root(parent),
        sign: Sign::Fork,
        takes_over: false,
    };
    assert_eq!(kernel.notices(), [joined]);
    kernel.compute();
    kernel.switch(1);
    assert!(!kernel.directive.target_in && !kernel.is_member(1));
    kernel.switch(child);
    assert!(kernel.directive.target_in);
}

#[test]
fn a_child_that_runs_behind_others_is_seen_by_the_lookout() {
    let mut kernel = followed(Follow::All);
    let child = kernel.fork();
    kernel.write(STACK);
    kernel.switch(1);
    assert!(kernel.directive.lookout.is_some(), "it may have forked");
    kernel.compute();
    kernel.switch(2);
    kernel.compute();
    kernel.switch(child);
    assert!(kernel.is_member(child) && kernel.directive.target_in);
    assert!(kernel.no_other_is_a_member());
}

#[test]
fn a_child_that_runs_much_later_is_seen_when_a_timer_interrupts_it() {
    let mut kernel = followed(Follow::All);
    let child = kernel.fork();
    kernel.write(STACK);
    kernel.switch(1);
    for _ in 0..100 {
        kernel.compute();
    }
    assert!(kernel.directive.lookout.is_none());
    kernel.switch(child);
    assert!(!kernel.is_member(child));
    kernel.compute();
    assert!(kernel.is_member(child) && kernel.directive.target_in);
}

#[test]
fn loads_of_others_exit_at_a_bounded_cost_however_often_a_target_forks() {
    const EXIT: u64 = 2_000;
    const FORKS: u64 = 400;
    const TURN: u64 = 20_000;
    let mut kernel = followed(Follow::All);
    kernel.suppression.set_exit_cost(EXIT);
    let (mut exits, start) = (0, kernel.now);
    for _ in 0..FORKS {
        let child = kernel.fork();
        kernel.switch(1);
        // Others take turns by microseconds.
        for turn in 0..500 {
            exits += u64::from(kernel.directive.lookout.is_some());
            kernel.switch(2 - turn % 2);
            kernel.now += TURN - 2_000;
        }
        // It ends unseen.
        kernel.processes[child].lives = false;
        kernel.empty(child);
        let root = kernel.processes[child].root;
        kernel.drop_frame(root);
        kernel.switch(0);
        kernel.compute();
    }
    let earned = kernel.now - start + LOOKOUT_EARNINGS * 1_000_000_000;
    let by_cost = earned / LOOKOUT_SHARE / EXIT;
    let by_time = earned / TIMED_LOOKOUT_SHARE / TURN;
    // What an exit has cost is known at the next one.
    assert!(
        (by_cost..=by_cost + by_time + FORKS).contains(&exits),
        "{exits} exits, of {by_cost} and {by_time}"
    );
}

#[test]
fn who_hops_behind_others_that_take_turns_seldom_is_seen_each_time_before_it_has_run() {
    let mut kernel = followed(Follow::All);
    kernel.suppression.set_exit_cost(10_000);
    for hop in 0..400 {
        let child = kernel.fork();
        kernel.exit(1);
        for other in [1, 2] {
            kernel.switch(other);
            for _ in 0..8 {
                kernel.compute();
            }
        }
        kernel.switch(child);
        assert!(
            kernel.is_member(child) && kernel.directive.target_in,
            "{hop}"
        );
        assert!(kernel.no_other_is_a_member());
        kernel.compute();
        // The next one is number 0 again.
        kernel.processes.swap(0, child);
        kernel.processes.truncate(3);
        kernel.current = 0;
    }
}

#[test]
fn one_that_hops_from_child_to_child_is_followed_and_told_as_one_that_takes_over() {
    let mut kernel = followed(Follow::All);
    for hop in 0..200 {
        let child = kernel.fork();
        kernel.write(STACK);
        if hop % 3 == 0 {
            kernel.switch(1);
            kernel.compute();
            kernel.switch(0);
        }
        // The parent ends; every other time somebody else runs in between.
        if hop % 2 == 0 {
            kernel.exit(child);
        } else {
            kernel.exit(2);
            kernel.compute();
            kernel.switch(child);
        }
        // A lookout cannot be had each time; a timer comes soon.
        kernel.compute();
        assert!(
            kernel.is_member(child) && kernel.directive.target_in,
            "{hop}"
        );
        assert!(kernel.no_other_is_a_member());
        // The next one is number 0 again.
        kernel.processes.swap(0, child);
        kernel.processes.truncate(3);
        kernel.current = 0;
    }
    let snapshot = kernel.suppression.snapshot(HostTicks(kernel.now));
    assert_eq!(snapshot.targets.len(), 1, "one budget");
    assert_eq!(snapshot.targets[0].roots.len(), 1);
    let took_over = |it: &Subject| {
        matches!(
            it,
            Subject::Joined {
                takes_over: true,
                ..
            }
        )
    };
    assert!(kernel.notices().iter().any(took_over));
}

#[test]
fn a_new_program_on_the_same_kernel_stack_is_a_member() {
    let mut kernel = followed(Follow::All);
    for _ in 0..50 {
        kernel.exec();
        assert!(kernel.is_member(0) && kernel.directive.target_in);
        kernel.compute();
        kernel.switch(1);
        kernel.compute();
        kernel.switch(0);
        kernel.compute();
        assert!(kernel.no_other_is_a_member());
    }
    let snapshot = kernel.suppression.snapshot(HostTicks(kernel.now));
    let members = &snapshot.targets[0].members;
    assert!(members.iter().skip(1).all(|it| it.sign == Sign::Exec));
    let ended = members.iter().filter(|it| it.ended.is_some()).count();
    assert_eq!(ended + 1, members.len(), "those before it are gone");
}

#[test]
fn the_roots_that_new_programs_have_left_make_nobody_a_member() {
    let mut kernel = followed(Follow::All);
    let mut left = Vec::new();
    // All this is quicker than members are looked at that do not run.
    for _ in 0..3 {
        left.push(kernel.processes[0].root);
        kernel.exec();
    }
    kernel.switch(1);
    for cr3 in left {
        assert!(kernel.suppression.targets().of(root(cr3)).is_none());
    }
    // They get the same memory at the same addresses, as it happens.
    for _ in 0..3 {
        let stranger = kernel.start();
        kernel.switch(stranger);
        assert!(!kernel.is_member(stranger));
    }
    assert!(kernel.is_member(0));
}

#[test]
fn a_child_of_one_that_has_become_a_new_program_since_is_a_member() {
    let mut kernel = followed(Follow::All);
    let child = kernel.fork();
    kernel.exec();
    kernel.compute();
    // The address space that both had is gone; nobody has looked at it since.
    kernel.switch(child);
    assert!(kernel.is_member(child) && kernel.directive.target_in);
    assert!(kernel.no_other_is_a_member());
}

#[test]
fn a_page_that_is_written_and_frozen_again_between_two_looks_is_a_sign() {
    let mut kernel = followed(Follow::All);
    let first = kernel.fork();
    // The first fork is seen, and its child ends: the page is the target's alone.
    kernel.switch(first);
    kernel.exit(0);
    kernel.write(STACK);
    let second = kernel.fork();
    kernel.exec();
    kernel.switch(second);
    assert!(kernel.is_member(second) && kernel.directive.target_in);
}

#[test]
fn the_next_owner_of_memory_that_a_family_has_left_is_no_member() {
    for is_filled in [false, true] {
        let mut kernel = followed(Follow::All);
        // It has become a new program, and its old memory is free.
        kernel.fork();
        let left: Vec<_> = kernel.processes[0].pages.clone().into_iter().collect();
        kernel.exec();
        kernel.compute();
        // Another one has it at the same addresses, with other contents or none, and forks.
        for (address, page) in left {
            let contents = [u8::from(is_filled); PAGE_SIZE as usize];
            let at = vmx::addr::GuestPhysAddr(page.frame);
            kernel.ram.write(at, &contents).unwrap();
            let frozen = Page {
                writable: false,
                ..page
            };
            kernel.set_page(1, address, frozen);
        }
        kernel.switch(1);
        kernel.compute();
        assert!(!kernel.is_member(1), "filled: {is_filled}");
    }
}

#[test]
fn the_next_owner_of_memory_that_a_member_had_frozen_once_is_no_member() {
    let mut kernel = followed(Follow::All);
    let child = kernel.fork();
    // That its page is frozen is seen.
    kernel.switch(1);
    kernel.switch(0);
    let Page { frame, .. } = kernel.processes[0].pages[&STACK];
    // It gets another page, and its child ends, unseen; another one gets the old page at the same address, and forks.
    kernel.write(STACK);
    kernel.processes[child].lives = false;
    kernel.empty(child);
    kernel.current = 1;
    kernel.fork();
    kernel.free.retain(|&it| it != frame);
    kernel.free.push(frame);
    kernel.write(STACK);
    assert_eq!(kernel.processes[1].pages[&STACK].frame, frame);
    kernel.fork();
    // What the member has left is looked at only now.
    kernel.current = 0;
    kernel.exit(2);
    kernel.switch(1);
    kernel.compute();
    assert!(!kernel.is_member(1));
}

#[test]
fn a_switch_to_another_stack_is_no_new_program() {
    let mut kernel = followed(Follow::All);
    for _ in 0..10 {
        let stranger = kernel.start();
        kernel.switch(stranger);
        kernel.compute();
        assert!(!kernel.is_member(stranger));
        kernel.switch(0);
        kernel.compute();
    }
}

#[test]
fn a_program_that_a_thread_of_the_kernel_starts_is_nobodys() {
    let mut kernel = followed(Follow::All);
    let helper = kernel.start();
    // The thread runs on the target's page tables, and stays on its stack.
    kernel.current = helper;
    kernel.load_cr3(0xffff_c900_0100_3d00, 0xffff_c900_0100_3cc0, Thread::Kernel);
    kernel.compute();
    assert!(!kernel.is_member(helper));
}

#[test]
fn a_kernel_that_can_be_interrupted_while_it_switches_tells_nothing_of_programs() {
    let mut kernel = followed(Follow::All);
    let other = kernel.start();
    kernel.current = other;
    let rsp = kernel.processes[0].kernel_stack;
    for _ in 0..3 {
        kernel.see(true, Kernel::kernel(rsp, true), Thread::User);
    }
    assert!(!kernel.is_member(other));
}

#[test]
fn who_is_not_to_be_followed_is_not() {
    for (follow, forks, execs) in [
        (Follow::None, false, false),
        (Follow::Fork, true, false),
        (Follow::Exec, false, true),
    ] {
        let mut kernel = followed(follow);
        let child = kernel.fork();
        kernel.switch(child);
        kernel.compute();
        assert_eq!(kernel.is_member(child), forks, "{follow:?}");
        kernel.switch(0);
        kernel.exec();
        assert_eq!(kernel.is_member(0), execs, "{follow:?}");
    }
}

#[test]
fn children_from_before_and_siblings_are_no_members() {
    let mut kernel = Kernel::new(2);
    let before = kernel.fork();
    // The parent of the target, the target, and two siblings of it.
    let siblings = [kernel.fork(), kernel.fork()];
    kernel.suppress(before, Follow::All);
    for _ in 0..20 {
        for number in [0, before, siblings[0], before, siblings[1], 1] {
            kernel.switch(number);
            kernel.compute();
        }
    }
    assert!(kernel.is_member(before) && kernel.no_other_is_a_member());
}

#[test]
fn processes_that_share_memory_with_a_target_are_no_members() {
    let mut kernel = Kernel::new(1);
    for address in [SHARED, SHARED + PAGE_SIZE] {
        kernel.add_page(0, address, false);
    }
    let target = kernel.fork();
    let sibling = kernel.fork();
    kernel.suppress(target, Follow::All);
    for turn in 0..20 {
        for number in [target, 0, sibling] {
            kernel.switch(number);
            kernel.write(SHARED);
            kernel.compute();
        }
        if turn == 10 {
            // The memory is a file's, and is written back: nobody may write until he wants to.
            for number in [target, 0, sibling] {
                let page = kernel.processes[number].pages[&SHARED];
                let clean = Page {
                    writable: false,
                    ..page
                };
                kernel.set_page(number, SHARED, clean);
            }
        }
    }
    assert!(kernel.is_member(target) && kernel.no_other_is_a_member());
    // A child that shares the memory is found all the same.
    kernel.switch(target);
    kernel.compute();
    let child = kernel.fork();
    kernel.switch(child);
    assert!(kernel.is_member(child));
}

#[test]
fn thousands_of_processes_of_the_same_program_beside_a_family_are_no_members() {
    let mut kernel = followed(Follow::All);
    let child = kernel.fork();
    kernel.switch(child);
    kernel.compute();
    for n in 0..2_000 {
        // A shell forks, and its child becomes the program, or works as it is, and ends.
        kernel.switch(1);
        let stranger = kernel.fork();
        kernel.compute();
        if n % 3 == 0 {
            let member = [0, child][n % 2];
            kernel.switch(member);
            kernel.compute();
        }
        kernel.switch(stranger);
        kernel.compute();
        if n % 2 == 0 {
            kernel.exec();
            kernel.compute();
        } else {
            let grandchild = kernel.fork();
            kernel.switch(grandchild);
            kernel.compute();
            assert!(kernel.no_other_is_a_member(), "{n}");
            kernel.exit(stranger);
        }
        kernel.compute();
        assert!(kernel.no_other_is_a_member(), "{n}");
        kernel.exit(1);
        kernel.processes.truncate(child + 1);
    }
    assert!(kernel.is_member(0) && kernel.is_member(child));
    let living = kernel.suppression.snapshot(HostTicks(kernel.now)).targets[0]
        .roots
        .len();
    assert_eq!(living, 2);
}

#[test]
fn a_family_that_is_full_takes_nobody_in_and_says_so_once() {
    let mut kernel = followed(Follow::All);
    let mut outside = 0;
    for _ in 0..MAX_MEMBERS + 5 {
        let child = kernel.fork();
        kernel.switch(child);
        outside += usize::from(!kernel.is_member(child));
        kernel.switch(0);
        kernel.now += 200 * MS;
    }
    assert_eq!(outside, 6);
    let notices = kernel.notices();
    let full = |it: &&Subject| {
        matches!(
            it,
            Subject::Full {
                bound: MAX_MEMBERS,
                ..
            }
        )
    };
    let left_out = notices.iter().any(|it| matches!(it, Subject::LeftOut(_)));
    assert!(
        notices.iter().filter(full).count() == 1 || left_out,
        "{notices:?}"
    );
    let released = kernel
        .suppression
        .release(root(kernel.processes[1 + 2].root));
    assert!(released.is_some(), "by any of its members");
    assert!(kernel.suppression.targets().is_empty());
}

#[test]
fn who_has_just_ended_is_named_as_long_as_descendants_are_looked_for() {
    let mut kernel = followed(Follow::All);
    let named = root(kernel.processes[0].root);
    let child = kernel.fork();
    kernel.exit(1);
    assert!(kernel.suppression.targets().is_empty());
    let other = Order {
        follow: Follow::Fork,
        ..order(Follow::All)
    };
    let now = HostTicks(kernel.now);
    let again = kernel
        .suppression
        .suppress(&kernel.ram, named, LONG, other, &[], now);
    assert_eq!(again, Ok(()));
    kernel.switch(child);
    assert!(kernel.is_member(child));
    let target = kernel.suppression.targets().named(named).unwrap();
    assert_eq!(target.order().follow, Follow::Fork);
}

#[test]
fn one_that_moves_to_other_slots_of_its_root_stays_a_member() {
    let mut kernel = followed(Follow::All);
    for turn in 1..50 {
        // It maps itself elsewhere, and lets go of all that it had.
        let place = turn << 39;
        kernel.empty(0);
        for address in [place, place + PAGE_SIZE] {
            kernel.add_page(0, address, true);
            kernel.fill(0, address);
        }
        kernel.tick(MS);
        assert!(kernel.is_member(0) && kernel.directive.target_in);
        if turn % 2 == 0 {
            kernel.switch(1);
            kernel.compute();
            kernel.switch(0);
            assert!(kernel.is_member(0) && kernel.directive.target_in);
        }
    }
    assert_eq!(kernel.notices(), []);
}

#[test]
fn the_root_of_one_that_has_ended_makes_nobody_a_member() {
    let mut kernel = followed(Follow::All);
    kernel.exit(1);
    kernel.compute();
    let cr3 = kernel.processes[0].root;
    let ended = Subject::MemberEnded {
        member: root(cr3),
        end: End::Died,
        living: 0,
    };
    assert_eq!(kernel.notices(), [ended]);
    let next = kernel.start();
    assert_eq!(kernel.processes[next].root, cr3, "the page is used again");
    kernel.switch(next);
    kernel.compute();
    assert!(!kernel.is_member(next) && kernel.suppression.targets().is_empty());
    kernel.tick(6_000 * MS);
    kernel.switch(1);
    kernel.tick(MS);
    assert_eq!(kernel.notices(), [Subject::Ended(End::Died)]);
    for _ in 0..100 {
        kernel.tick(MS);
        kernel.report(Event::Time);
    }
    assert!(kernel.suppression.targets().are_forgotten());
}

#[test]
fn a_root_with_the_same_tables_and_other_memory_is_somebody_elses() {
    let mut kernel = followed(Follow::All);
    kernel.switch(1);
    kernel.compute();
    // Unseen, the target ends, and another process gets its root and the same tables, as it happens.
    let pages = kernel.processes[0].pages.clone();
    let other = kernel.free.len();
    assert!(other > 20);
    for (at, (&address, &page)) in pages.iter().enumerate() {
        let frame = kernel.free[at];
        kernel.set_page(0, address, Page { frame, ..page });
    }
    kernel.processes[0].is_family = false;
    kernel.switch(0);
    assert!(!kernel.is_member(0) && !kernel.directive.target_in);
    let lost = |it: &Subject| matches!(it, Subject::MemberEnded { end: End::Lost, .. });
    assert!(kernel.notices().iter().any(lost));
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Fork,
    Exec,
    Exit(usize),
    Switch(usize),
    Write(usize),
    Tick(u64),
    Start,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Fork),
        1 => Just(Action::Exec),
        2 => (0usize..16).prop_map(Action::Exit),
        6 => (0usize..16).prop_map(Action::Switch),
        6 => (0usize..5).prop_map(Action::Write),
        6 => (1u64..6_000_000).prop_map(Action::Tick),
        1 => Just(Action::Start),
    ]
}

impl Kernel {
    /// The `n`th of the processes that live, but for the current one; the current one if there is no
    /// other.
    fn other(&self, n: usize) -> usize {
        let others: Vec<_> = (0..self.processes.len())
            .filter(|&it| self.processes[it].lives && it != self.current)
            .collect();
        match others.len() {
            0 => self.current,
            count => others[n % count],
        }
    }

    fn act(&mut self, action: Action) {
        /// More would not be remembered as no members.
        const MOST: usize = 12;
        let living = self.processes.iter().filter(|it| it.lives).count();
        match action {
            Action::Fork if living < MOST => {
                self.fork();
            }
            Action::Start if living < MOST => {
                self.start();
            }
            Action::Exec => self.exec(),
            Action::Exit(next) if living > 2 => self.exit(self.other(next)),
            Action::Switch(to) => self.switch(self.other(to)),
            Action::Write(which) => {
                let pages = self.processes[self.current].pages.keys().copied();
                let pages: Vec<_> = pages.collect();
                self.write(pages[which % pages.len()]);
            }
            Action::Tick(ticks) => self.tick(ticks),
            Action::Fork | Action::Start | Action::Exit(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever processes do, nobody is taken in who is not of the family; and whoever is, is found when it is
    /// seen with a page left that is its parent's.
    #[test]
    fn the_family_is_taken_in_and_nobody_else(
        named in 0usize..3, actions in prop::collection::vec(action(), 1..250),
    ) {
        let mut kernel = Kernel::new(3);
        kernel.suppress(named, Follow::All);
        kernel.tick(MS);
        for (at, action) in actions.into_iter().enumerate() {
            kernel.act(action);
            prop_assert!(kernel.no_other_is_a_member(), "{}: {:?}: a stranger is a member", at, action);
            let current = &kernel.processes[kernel.current];
            let good_for = TSC.get() / super::super::non_targets::GOOD_FOR;
            let is_old = current.made_at.is_none_or(|at| kernel.judged_at >= at + good_for);
            let is_seen = is_old && kernel.judged == Some(root(current.root));
            if current.is_family && is_seen && kernel.is_recognizable(kernel.current) {
                prop_assert!(kernel.is_member(kernel.current), "{}: {:?}: a member is not known", at, action);
            }
        }
    }
}
