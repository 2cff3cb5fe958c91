//! What [`PageTableFlags`](crate::PageTableFlags) does not name of page tables and CR3 (SDM
//! vol. 3A, ch. 4).

/// Bytes in a 4 KiB page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes in a 2 MiB page.
pub const SIZE_2M: u64 = 2 << 20;
/// Bytes in a 1 GiB page.
pub const SIZE_1G: u64 = 1 << 30;
/// Entries of 8 bytes in a table.
pub const ENTRIES: usize = 512;

/// The bits of an 8-byte entry, or of CR3 with 4-level paging, that hold the address of a table
/// or 4 KiB page: bits 51 to 12, of which a processor has those below its MAXPHYADDR.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The bits of a 4-byte entry, or of CR3 with 32-bit paging, that hold the address of a table or
/// 4 KiB page.
pub const ADDRESS_32: u64 = 0xffff_f000;
/// The bits of CR3 that hold the address of the page-directory-pointer table with PAE paging,
/// which is aligned to 32 bytes.
pub const PDPT_ADDRESS: u64 = 0xffff_ffe0;

/// The bit in the source of a MOV to CR3 (with CR4.PCIDE set) that keeps what is cached for the
/// PCID. It is not written to CR3 (SDM vol. 3A, 4.10.4.1).
pub const CR3_NO_FLUSH: u64 = 1 << 63;
