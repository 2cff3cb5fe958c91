//! What can go wrong with an access to a disk.

/// The cause of a failed access to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// An access past the end.
    OutOfRange,
    /// No memory for what is written, or for the disk.
    OutOfMemory,
    /// The disk cannot be written.
    ReadOnly,
    /// The disk's image has nothing there that can be read.
    Damaged,
}
