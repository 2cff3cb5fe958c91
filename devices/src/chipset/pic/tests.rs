use super::*;

const MASTER: u16 = port::PIC_MASTER;
const SLAVE: u16 = port::PIC_SLAVE;
const EOI: u8 = 0x20;

fn initialize(pic: &mut PicPair, icw4: u8) {
    for (port, base, cascade) in [(MASTER, 0x30, 0x04), (SLAVE, 0x38, 0x02)] {
        pic.write(port, 0x11);
        pic.write(port + 1, base);
        pic.write(port + 1, cascade);
        pic.write(port + 1, icw4);
    }
}

fn initialized() -> PicPair {
    let mut pic = PicPair::new();
    initialize(&mut pic, 0x01);
    pic
}

fn pulse(pic: &mut PicPair, irq: u8) {
    pic.set_irq(irq, true);
    pic.set_irq(irq, false);
}

fn read(pic: &mut PicPair, port: u16, ocw3: u8) -> u8 {
    pic.write(port, ocw3);
    pic.read(port)
}

fn requests(pic: &mut PicPair, port: u16) -> u8 {
    read(pic, port, 0x0a)
}

fn in_service(pic: &mut PicPair, port: u16) -> u8 {
    read(pic, port, 0x0b)
}

#[test]
fn firmware_leaves_all_but_the_cascade_masked() {
    let mut pic = PicPair::new();
    assert_eq!(pic.read(MASTER + 1), 0xfb);
    assert_eq!(pic.read(SLAVE + 1), 0xff);
    for irq in 0..=15 {
        pic.set_irq(irq, true);
    }
    assert!(!pic.output());
}

#[test]
fn every_irq_arrives_with_its_vector() {
    for irq in (0..16).filter(|&irq| irq != irq::CASCADE) {
        let mut pic = initialized();
        pic.set_irq(irq, true);
        assert!(pic.output(), "IRQ {irq}");
        assert_eq!(pic.acknowledge(), 0x30 + irq);
        assert!(!pic.output());
        let (master, slave) = if irq < 8 {
            (1 << irq, 0)
        } else {
            (1 << irq::CASCADE, 1 << (irq - 8))
        };
        assert_eq!(in_service(&mut pic, MASTER), master);
        assert_eq!(in_service(&mut pic, SLAVE), slave);
        assert_eq!(requests(&mut pic, MASTER), 0);
        assert_eq!(requests(&mut pic, SLAVE), 0);
    }
}

#[test]
fn the_vector_ignores_the_low_bits_of_icw2() {
    let mut pic = initialized();
    pic.write(MASTER, 0x11);
    for icw in [0x27, 0x04, 0x01] {
        pic.write(MASTER + 1, icw);
    }
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn without_icw4_the_data_port_takes_the_mask_after_icw3() {
    let mut pic = initialized();
    pic.write(MASTER, 0x10);
    pic.write(MASTER + 1, 0x40);
    pic.write(MASTER + 1, 0x04);
    pic.write(MASTER + 1, 0xa5);
    assert_eq!(pic.read(MASTER + 1), 0xa5);
}

#[test]
fn in_single_mode_the_sequence_has_no_icw3() {
    for (icw1, words) in [(0x13, &[0x40, 0x01][..]), (0x12, &[0x40][..])] {
        let mut pic = initialized();
        pic.write(MASTER, icw1);
        for &word in words {
            pic.write(MASTER + 1, word);
        }
        pic.write(MASTER + 1, 0xa5);
        assert_eq!(pic.read(MASTER + 1), 0xa5, "the mask");
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x43);
    }
}

#[test]
fn an_edge_counts_once_and_a_level_until_it_falls() {
    let mut pic = initialized();
    pic.set_irq(5, true);
    pic.acknowledge();
    pic.write(MASTER, EOI);
    assert!(!pic.output(), "the line is high, but there was no new edge");

    let mut pic = initialized();
    pic.write(port::ELCR_MASTER, 1 << 5);
    pic.set_irq(5, true);
    pic.acknowledge();
    assert!(!pic.output());
    pic.write(MASTER, EOI);
    assert!(pic.output());
    pic.set_irq(5, false);
    assert!(!pic.output());
}

#[test]
fn a_masked_edge_is_delivered_when_unmasked() {
    let mut pic = initialized();
    pic.write(MASTER + 1, 1 << 4);
    pulse(&mut pic, 4);
    assert!(!pic.output());
    assert_eq!(requests(&mut pic, MASTER), 1 << 4);
    pic.write(MASTER + 1, 0);
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn timer_keyboard_cascade_rtc_and_fpu_cannot_be_level_triggered() {
    let mut pic = initialized();
    pic.write(port::ELCR_MASTER, 0xff);
    pic.write(port::ELCR_SLAVE, 0xff);
    assert_eq!(pic.read(port::ELCR_MASTER), 0xf8);
    assert_eq!(pic.read(port::ELCR_SLAVE), 0xde);
}

#[test]
fn a_level_that_has_gone_is_no_edge_when_its_input_becomes_edge_triggered() {
    let mut pic = initialized();
    pic.write(port::ELCR_MASTER, 1 << 5);
    pulse(&mut pic, 5);
    pic.write(port::ELCR_MASTER, 0);
    assert_eq!(requests(&mut pic, MASTER), 0);
    assert!(!pic.output());
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn higher_levels_nest_and_lower_ones_wait() {
    let mut pic = initialized();
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x34);
    pulse(&mut pic, 6);
    assert!(!pic.output());
    pulse(&mut pic, 4);
    assert!(!pic.output(), "nor does the level itself nest");
    pulse(&mut pic, 9);
    assert_eq!(pic.acknowledge(), 0x39, "the cascade is level 2");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);

    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 2 | 1 << 4);
    pic.write(SLAVE, EOI);
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 4);
    pic.write(MASTER, EOI);
    assert_eq!(pic.acknowledge(), 0x34);
    pic.write(MASTER, EOI);
    assert_eq!(pic.acknowledge(), 0x36);
}

#[test]
fn a_specific_eoi_ends_just_that_level() {
    let mut pic = initialized();
    pulse(&mut pic, 6);
    pic.acknowledge();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.write(MASTER, 0x60 | 6);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 3);
}

#[test]
fn a_second_slave_interrupt_waits_for_both_eois() {
    let mut pic = initialized();
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x3c);
    pulse(&mut pic, 14);
    pic.write(MASTER, EOI);
    assert!(!pic.output(), "14 ranks below 12, which is in service");
    pic.write(SLAVE, EOI);
    assert_eq!(pic.acknowledge(), 0x3e);
}

#[test]
fn in_special_fully_nested_mode_a_more_urgent_slave_interrupt_nests() {
    let mut plain = initialized();
    let mut special = PicPair::new();
    initialize(&mut special, 0x11);
    for pic in [&mut plain, &mut special] {
        pulse(pic, 12);
        assert_eq!(pic.acknowledge(), 0x3c);
        pulse(pic, 8);
    }
    assert!(!plain.output());
    assert!(special.output());
    pulse(&mut special, 5);
    assert_eq!(special.acknowledge(), 0x38);
    assert!(
        !special.output(),
        "the cascade still holds up what ranks below it"
    );
}

#[test]
fn special_fully_nested_mode_does_not_nest_an_interrupt_of_the_slave_in_itself() {
    let mut pic = PicPair::new();
    initialize(&mut pic, 0x11);
    for irq in 8..16 {
        pulse(&mut pic, irq);
        assert_eq!(pic.acknowledge(), 0x30 + irq);
        pulse(&mut pic, irq);
        assert!(!pic.output(), "IRQ {irq}");
        pic.write(SLAVE, EOI);
        assert_eq!(pic.acknowledge(), 0x30 + irq);
        pic.write(SLAVE, EOI);
        pic.write(MASTER, EOI);
    }
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let mut pic = PicPair::new();
    initialize(&mut pic, 0x03);
    pulse(&mut pic, 3);
    pulse(&mut pic, 10);
    assert_eq!(pic.acknowledge(), 0x3a);
    assert_eq!(pic.acknowledge(), 0x33);
    assert_eq!(in_service(&mut pic, MASTER), 0);
    assert_eq!(in_service(&mut pic, SLAVE), 0);
}

#[test]
fn rotation_gives_the_served_level_the_lowest_priority() {
    // On a non-specific EOI.
    let mut pic = initialized();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.write(MASTER, 0xa0);
    pulse(&mut pic, 3);
    pulse(&mut pic, 7);
    assert_eq!(pic.acknowledge(), 0x37);

    // On a specific EOI.
    let mut pic = initialized();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.write(MASTER, 0xe0 | 3);
    assert_eq!(in_service(&mut pic, MASTER), 0);
    pulse(&mut pic, 3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x34);

    // By automatic EOI.
    let mut pic = PicPair::new();
    initialize(&mut pic, 0x03);
    pic.write(MASTER, 0x80);
    pulse(&mut pic, 0);
    pic.acknowledge();
    pulse(&mut pic, 0);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x36);
    // Lowest is 6 now; switched off, it stays so.
    pic.write(MASTER, 0x00);
    pulse(&mut pic, 6);
    pic.acknowledge();
    pic.acknowledge();
    pulse(&mut pic, 7);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn the_set_priority_command_names_the_lowest() {
    let mut pic = initialized();
    pic.write(MASTER, 0xc0 | 4);
    pulse(&mut pic, 4);
    pulse(&mut pic, 0);
    pulse(&mut pic, 5);
    for (expected, eoi) in [(0x35, 5), (0x30, 0), (0x34, 4)] {
        assert_eq!(pic.acknowledge(), expected);
        pic.write(MASTER, 0x60 | eoi);
    }
}

#[test]
fn special_mask_mode_lets_lower_levels_in_under_a_masked_one() {
    let mut pic = initialized();
    pulse(&mut pic, 1);
    pic.acknowledge();
    pulse(&mut pic, 6);
    pic.write(MASTER + 1, 1 << 1);
    assert!(!pic.output());
    pic.write(MASTER, 0x68);
    assert_eq!(pic.acknowledge(), 0x36);
    // The masked level is not what a non-specific EOI ends.
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 1);
    pic.write(MASTER, EOI);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 1);
    pic.write(MASTER, 0x48);
    pulse(&mut pic, 6);
    assert!(!pic.output());
}

#[test]
fn polling_acknowledges_without_an_inta_cycle() {
    let mut pic = initialized();
    assert_eq!(read(&mut pic, MASTER, 0x0c), 0);
    pulse(&mut pic, 13);
    assert_eq!(read(&mut pic, MASTER, 0x0c), 0x82);
    assert_eq!(read(&mut pic, SLAVE, 0x0c), 0x85);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 2);
    assert_eq!(in_service(&mut pic, SLAVE), 1 << 5);
    assert!(!pic.output());
    // The poll command was good for one read.
    assert_eq!(pic.read(MASTER + 1), 0);
    pulse(&mut pic, 0);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER + 1), 0x80, "either port answers a poll");
}

#[test]
fn a_request_that_has_gone_is_answered_with_a_spurious_vector() {
    let mut pic = initialized();
    pic.write(port::ELCR_MASTER, 1 << 5);
    pic.set_irq(5, true);
    assert!(pic.output());
    pic.set_irq(5, false);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(in_service(&mut pic, MASTER), 0);
}

#[test]
fn a_spurious_slave_interrupt_is_in_service_at_the_master_only() {
    let mut pic = initialized();
    pulse(&mut pic, 10);
    assert_eq!(pic.acknowledge(), 0x3a);
    pic.write(MASTER, EOI);
    // What the slave asks for goes between the two acknowledge pulses.
    pic.slave.in_service = 0;
    pic.master.latched |= 1 << irq::CASCADE;
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 2);
    assert_eq!(in_service(&mut pic, SLAVE), 0);
}

#[test]
fn masking_the_only_request_of_the_slave_takes_it_back_from_the_master() {
    let mut pic = initialized();
    pulse(&mut pic, 11);
    assert!(pic.output());
    pic.write(SLAVE + 1, 0xff);
    assert!(!pic.output());
    assert_eq!(requests(&mut pic, MASTER), 0);
    pic.write(SLAVE + 1, 0);
    assert_eq!(pic.acknowledge(), 0x3b);
}

#[test]
fn initialization_forgets_edges_and_demands_new_ones() {
    let mut pic = initialized();
    pic.set_irq(3, true);
    pic.set_irq(10, true);
    initialize(&mut pic, 0x01);
    assert!(!pic.output());
    pic.set_irq(3, true);
    assert!(!pic.output(), "it was high before");
    pic.set_irq(3, false);
    pic.set_irq(3, true);
    assert_eq!(pic.acknowledge(), 0x33);
}

#[test]
fn the_cascade_and_impossible_irqs_are_no_inputs() {
    let mut pic = initialized();
    for irq in [2, 16, 24, 255] {
        pic.set_irq(irq, true);
        assert!(!pic.output());
    }
}

proptest::proptest! {
    #[test]
    fn whatever_a_guest_writes_output_says_whether_there_is_something_to_acknowledge(
        writes in proptest::collection::vec((0usize..9, proptest::num::u8::ANY), 0..200)
    ) {
        const PORTS: [u16; 6] =
            [MASTER, MASTER + 1, SLAVE, SLAVE + 1, port::ELCR_MASTER, port::ELCR_SLAVE];
        let mut pic = PicPair::new();
        for (what, value) in writes {
            match PORTS.get(what) {
                Some(&port) => {
                    pic.write(port, value);
                    pic.read(port);
                }
                None if what == 8 => {
                    pic.acknowledge();
                }
                None => pic.set_irq(value & 0x1f, value & 0x80 != 0),
            }
            let mut polled = pic.clone();
            let master = read(&mut polled, MASTER, 0x0c);
            proptest::prop_assert_eq!(master & 0x80 != 0, pic.output());
            if master == 0x80 | irq::CASCADE {
                proptest::prop_assert!(read(&mut polled, SLAVE, 0x0c) & 0x80 != 0);
            }
        }
    }
}
