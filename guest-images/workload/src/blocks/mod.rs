//! Random reads and writes of a disk whose power may be cut at any time, each of which is verified.
//!
//! Work is in [rounds]: some writes at random places, a flush of the disk, and a note in the
//! [ledger], which is on the disk too. What a round writes follows from its number, so that after a power
//! cut the ledger is enough to know what must be where: [`Exerciser::begin`](exerciser::Exerciser::begin) looks at
//! every sector. All here is pure, and tested on the host with disks that lose what disks may lose, and more.

pub mod exerciser;
pub mod ledger;
pub mod rounds;
pub mod sector;
