//! Files, and what else the kernel fills buffers with.

use core::ffi::CStr;

use linux_raw_sys::general::{O_DIRECT, O_RDONLY, O_RDWR, SEEK_END};
use syscalls::{Sysno, syscall};

use super::Errno;

/// Makes the file at `path` standard input and output.
///
/// # Errors
/// What `open(2)` says.
pub fn open_as_console(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path ends with a zero byte; descriptors 0 to 2 are nobody's property here.
    unsafe {
        let file = syscall!(Sysno::open, path.as_ptr(), O_RDWR, 0)?;
        for target in 0..=2 {
            if target != file {
                syscall!(Sysno::dup2, file, target)?;
            }
        }
        if file > 2 {
            syscall!(Sysno::close, file)?;
        }
    }
    Ok(())
}

/// An open file. It is closed when the process ends.
#[derive(Debug)]
pub struct File {
    descriptor: usize,
}

impl File {
    /// Returns the file at `path`, for reading.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(path: &CStr) -> Result<Self, Errno> {
        // SAFETY: the path ends with a zero byte.
        let descriptor = unsafe { syscall!(Sysno::open, path.as_ptr(), O_RDONLY, 0) }?;
        Ok(Self { descriptor })
    }

    /// Returns the file at `path`, for reading and writing; `directly` to and from this program's memory, past the
    /// kernel's page cache.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open_for_writing(path: &CStr, directly: bool) -> Result<Self, Errno> {
        let flags = O_RDWR | if directly { O_DIRECT } else { 0 };
        // SAFETY: the path ends with a zero byte.
        let descriptor = unsafe { syscall!(Sysno::open, path.as_ptr(), flags, 0) }?;
        Ok(Self { descriptor })
    }

    /// Returns an empty file without a name, in memory.
    ///
    /// # Errors
    /// What `memfd_create(2)` says.
    pub fn in_memory() -> Result<Self, Errno> {
        // SAFETY: the name ends with a zero byte.
        let descriptor = unsafe { syscall!(Sysno::memfd_create, c"file".as_ptr(), 0) }?;
        Ok(Self { descriptor })
    }

    /// Reads on into `buffer`, and says how much.
    ///
    /// # Errors
    /// What `read(2)` says.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: the kernel writes within the slice.
        unsafe {
            syscall!(
                Sysno::read,
                self.descriptor,
                buffer.as_mut_ptr(),
                buffer.len()
            )
        }
    }

    /// Writes `data` on, and says how much of it.
    ///
    /// # Errors
    /// What `write(2)` says.
    pub fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        // SAFETY: the kernel reads within the slice.
        unsafe { syscall!(Sysno::write, self.descriptor, data.as_ptr(), data.len()) }
    }

    /// Closes it before the process ends.
    ///
    /// # Errors
    /// What `close(2)` says.
    pub fn close(self) -> Result<(), Errno> {
        // SAFETY: the descriptor is nobody else's, and nobody's from now on.
        unsafe { syscall!(Sysno::close, self.descriptor) }.map(drop)
    }

    /// Writes `data` at this offset, and says how much of it.
    ///
    /// # Errors
    /// What `pwrite(2)` says.
    pub fn write_at(&self, offset: usize, data: &[u8]) -> Result<usize, Errno> {
        // SAFETY: the kernel reads within the slice.
        unsafe {
            syscall!(
                Sysno::pwrite64,
                self.descriptor,
                data.as_ptr(),
                data.len(),
                offset
            )
        }
    }

    /// Reads into `buffer` from this offset on, and says how much.
    ///
    /// # Errors
    /// What `pread(2)` says.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: the kernel writes within the slice.
        unsafe {
            syscall!(
                Sysno::pread64,
                self.descriptor,
                buffer.as_mut_ptr(),
                buffer.len(),
                offset
            )
        }
    }

    /// Waits until what was written to it is on the disk for good.
    ///
    /// # Errors
    /// What `fsync(2)` says.
    pub fn flush(&self) -> Result<(), Errno> {
        // SAFETY: no memory is involved.
        unsafe { syscall!(Sysno::fsync, self.descriptor) }.map(drop)
    }

    /// Returns its length in bytes, a disk's as well.
    ///
    /// # Errors
    /// What `lseek(2)` says.
    pub fn length(&self) -> Result<usize, Errno> {
        // SAFETY: no memory is involved.
        unsafe { syscall!(Sysno::lseek, self.descriptor, 0, SEEK_END) }
    }

    /// Cuts the file to nothing.
    ///
    /// # Errors
    /// What `ftruncate(2)` says.
    pub fn clear(&self) -> Result<(), Errno> {
        // SAFETY: no memory is involved.
        unsafe { syscall!(Sysno::ftruncate, self.descriptor, 0) }.map(drop)
    }
}

/// Makes a pipe: its end for reading, and the one for writing.
///
/// # Errors
/// What `pipe(2)` says.
pub fn pipe() -> Result<(File, File), Errno> {
    let mut descriptors = [0_i32; 2];
    // SAFETY: the kernel writes two descriptors.
    unsafe { syscall!(Sysno::pipe2, descriptors.as_mut_ptr(), 0) }?;
    let [reader, writer] = descriptors.map(|descriptor| File {
        // The kernel's are not negative.
        descriptor: descriptor as usize,
    });
    Ok((reader, writer))
}

/// Reads the beginning of the file at `path` into `buffer`: as much as fits.
///
/// # Errors
/// What `open(2)` and `read(2)` say.
pub fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let mut length = 0;
    let file = File::open(path)?;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) | Err(_) => break,
            Ok(read) => length += read,
        }
    }
    file.close()?;
    Ok(buffer.get(..length).unwrap_or_default())
}

/// Fills `buffer` with random bytes, in one system call. A signal ends it early.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn random(buffer: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the kernel writes within the slice.
    match unsafe { syscall!(Sysno::getrandom, buffer.as_mut_ptr(), buffer.len(), 0) } {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns whether there is a file at `path`.
#[must_use]
pub fn exists(path: &CStr) -> bool {
    // SAFETY: the path ends with a zero byte.
    unsafe { syscall!(Sysno::access, path.as_ptr(), 0) }.is_ok()
}

/// Reads this program's path into `buffer`.
///
/// # Errors
/// What `readlink(2)` says, and `ENAMETOOLONG`.
pub fn own_program(buffer: &mut [u8]) -> Result<&CStr, Errno> {
    let link = c"/proc/self/exe";
    // SAFETY: the path ends with a zero byte, and the kernel writes within the slice.
    let length = unsafe {
        syscall!(
            Sysno::readlink,
            link.as_ptr(),
            buffer.as_mut_ptr(),
            buffer.len()
        )
    }?;
    // The kernel writes none.
    *buffer.get_mut(length).ok_or(Errno::ENAMETOOLONG)? = 0;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::ENAMETOOLONG)
}

/// Mounts the kernel's file system of type `kind` at `path`, which is made if it is not there.
///
/// # Errors
/// What `mount(2)` says.
pub fn mount(kind: &CStr, path: &CStr) -> Result<(), Errno> {
    // SAFETY: all strings end with a zero byte.
    unsafe {
        // Fails where the directory is there, which is as good.
        let _ = syscall!(Sysno::mkdir, path.as_ptr(), 0o755);
        syscall!(
            Sysno::mount,
            kind.as_ptr(),
            path.as_ptr(),
            kind.as_ptr(),
            0,
            0
        )
        .map(drop)
    }
}
