//! The contents of a sector: a header that says which one it is and who wrote it, and a pattern that follows from that.

/// The length of a sector, in bytes: what a disk writes whole or not at all.
pub const LENGTH: usize = 512;

/// The length of a word of the contents.
const WORD: usize = 8;
/// The first word of each sector that was written.
const MAGIC: u64 = u64::from_le_bytes(*b"tarpit\x01\n");

/// The write that a sector's contents are of: a number that grows with each write of a disk's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// Returns a number that looks like chance, and is the same for the same `number`: the function of SplitMix64.
#[must_use]
pub const fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the words of sector `number` as generation `generation` of the history `seed` has it.
fn words(seed: u64, number: u32, generation: Generation) -> impl Iterator<Item = u64> {
    let place = (number as u64) << 32 | generation.0 as u64;
    let mut state = scramble(seed ^ scramble(place)) | 1;
    let pattern = core::iter::from_fn(move || {
        // Marsaglia's xorshift: a few instructions a word, as an emulator carries them out one by one.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state)
    });
    let header = [MAGIC, seed, place];
    header.into_iter().chain(pattern).take(LENGTH / WORD)
}

/// Fills `sectors`, which are on the disk from sector `first` on, with generation `generation` of the history `seed`.
pub fn fill(sectors: &mut [u8], seed: u64, first: u32, generation: Generation) {
    let (sectors, _) = sectors.as_chunks_mut::<LENGTH>();
    for (number, sector) in (first..).zip(sectors) {
        let (places, _) = sector.as_chunks_mut::<WORD>();
        for (place, word) in places.iter_mut().zip(words(seed, number, generation)) {
            *place = word.to_le_bytes();
        }
    }
}

/// Returns the generation whose contents `sector` has, if it is sector `number` of the history `seed`, whole.
#[must_use]
pub fn read(sector: &[u8; LENGTH], seed: u64, number: u32) -> Option<Generation> {
    let (places, _) = sector.as_chunks::<WORD>();
    let place = u64::from_le_bytes(*places.get(2)?);
    let generation = Generation(place as u32);
    let mut expected = words(seed, number, generation);
    let is_whole = places
        .iter()
        .all(|place| expected.next() == Some(u64::from_le_bytes(*place)));
    is_whole.then_some(generation)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sector(seed: u64, number: u32, generation: u32) -> [u8; LENGTH] {
        let mut sector = [0; LENGTH];
        fill(&mut sector, seed, number, Generation(generation));
        sector
    }

    proptest! {
        #[test]
        fn a_sector_tells_its_generation_and_only_in_its_place(
            seed: u64, number: u32, generation: u32, other in 1..u64::from(u32::MAX),
        ) {
            let sector = sector(seed, number, generation);
            prop_assert_eq!(read(&sector, seed, number), Some(Generation(generation)));
            prop_assert_eq!(read(&sector, seed, number.wrapping_add(other as u32)), None);
            prop_assert_eq!(read(&sector, seed ^ other, number), None);
        }

        #[test]
        fn a_byte_that_is_another_is_found(number: u32, at in 0..LENGTH, change in 1..=u8::MAX) {
            let mut sector = sector(7, number, 9);
            sector[at] ^= change;
            prop_assert_eq!(read(&sector, 7, number), None);
        }

        #[test]
        fn a_mixture_of_two_generations_is_none(number: u32, cut in 24..LENGTH - 1) {
            let (mut mixed, new) = (sector(7, number, 1), sector(7, number, 2));
            mixed[..cut].copy_from_slice(&new[..cut]);
            prop_assert_eq!(read(&mixed, 7, number), None);
        }
    }

    #[test]
    fn what_was_never_written_is_none() {
        assert_eq!(read(&[0; LENGTH], 0, 0), None);
        assert_eq!(read(&[0xff; LENGTH], 0, 0), None);
    }
}
