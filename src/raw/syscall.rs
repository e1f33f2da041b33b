//! System calls that no library of ours wraps: file handles, the file-system identity of one thread, figures of a TCP socket, a
//! TUN device for benches.
//!
//! Read first: name_to_handle_at(2), open_by_handle_at(2), setfsuid(2), credentials(7).
//!
//! Not here: what a handle means to a client (`program::handle`) and who may call as whom (`store::local`).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest handle the kernel makes, bytes (MAX_HANDLE_SZ).
const HANDLE_MAX: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; HANDLE_MAX],
}

/// What names an object of a file system for ever: inode and generation, in the file system's own words.
#[derive(Clone, Copy)]
pub struct KernelHandle {
    pub kind: i32,
    len: u8,
    bytes: [u8; HANDLE_MAX],
}

impl KernelHandle {
    /// `None` if there are more bytes than a handle can have.
    pub fn new(kind: i32, from: &[u8]) -> Option<KernelHandle> {
        let mut bytes = [0; HANDLE_MAX];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        Some(KernelHandle { kind, len: from.len() as u8, bytes })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The handle of `name` in `directory` (of `directory` itself if `name` is empty) and the mount it was found on.
/// A symbolic link is not followed.
pub fn name_to_handle(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<(KernelHandle, i32)> {
    let mut raw = RawHandle { handle_bytes: HANDLE_MAX as u32, handle_type: 0, f_handle: [0; HANDLE_MAX] };
    let mut mount_id = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let handle = (&raw mut raw).cast::<libc::file_handle>();
    // SAFETY: `raw` has the layout of `struct file_handle` with `handle_bytes` bytes of room behind it, `name` ends in NUL,
    // and the kernel writes only into `raw` and `mount_id`.
    check(unsafe { libc::name_to_handle_at(directory.as_raw_fd(), name.as_ptr(), handle, &raw mut mount_id, flags) })?;
    let bytes = raw.f_handle.get(..raw.handle_bytes as usize).unwrap_or(&[]);
    let handle = KernelHandle::new(raw.handle_type, bytes).ok_or(io::ErrorKind::InvalidData)?;
    Ok((handle, mount_id))
}

/// Opens the object that `handle` names on the file system `mount` lies on. Needs CAP_DAC_READ_SEARCH.
pub fn open_by_handle(mount: BorrowedFd<'_>, handle: &KernelHandle, flags: rustix::fs::OFlags) -> io::Result<OwnedFd> {
    let mut raw = RawHandle { handle_bytes: u32::from(handle.len), handle_type: handle.kind, f_handle: handle.bytes };
    let flags = (flags | rustix::fs::OFlags::CLOEXEC).bits() as libc::c_int;
    let pointer = (&raw mut raw).cast::<libc::file_handle>();
    // SAFETY: `raw` has the layout of `struct file_handle` and holds `handle_bytes` bytes; the kernel only reads it.
    let fd = check(unsafe { libc::open_by_handle_at(mount.as_raw_fd(), pointer, flags) })?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The identity under which this thread, and only this thread, reaches into file systems: user, group, supplementary
/// groups. With a user other than 0 the kernel takes the file-system capabilities from the thread until it is 0 again
/// (capabilities(7), "Effect of user ID changes on capabilities").
pub fn set_file_system_identity(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups_raw: smallvec::SmallVec<[rustix::fs::Gid; 16]> =
        groups.iter().map(|gid| rustix::fs::Gid::from_raw(*gid)).collect();
    // The order of setpriv: groups while the thread can still set them.
    rustix::thread::set_thread_groups(&groups_raw)?;
    // SAFETY: changes the credentials of the calling thread only; no memory is involved.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
    // Both calls report no error; asking with an invalid id tells what is in force (setfsuid(2), "Return value").
    // SAFETY: as above.
    let in_force = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    if (in_force.0 as u32, in_force.1 as u32) == (uid, gid) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Gives the calling thread its own umask of 0, so that the modes it creates files with are the ones it was asked for.
pub fn own_umask_of_zero() -> io::Result<()> {
    // SAFETY: unshares only file-system attributes (umask, working directory, root); no descriptor table, no memory.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Takes CAP_SYS_RESOURCE from the calling thread, for which disk quotas and blocks reserved for root are no limits. The
/// Linux server's threads do without it too (cap_drop_nfsd_set).
pub fn respect_quotas() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    if let Ok(mut sets) = capabilities(None) {
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        // Giving up a capability cannot fail.
        let _ = set_capabilities(None, sets);
    }
}

/// Segments of a TCP socket that the kernel has sent more than once (TCP_INFO of tcp(7)).
pub fn tcp_retransmissions(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: a structure of integers, for which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let pointer = (&raw mut info).cast::<libc::c_void>();
    // SAFETY: `pointer` has `len` bytes of room, and the kernel writes no more than that.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, pointer, &raw mut len) })?;
    Ok(info.tcpi_total_retrans)
}

/// A new TUN device of this name in the caller's network namespace, as a descriptor that reads and writes whole IP packets and does not
/// block. The device is gone when the descriptor is closed.
pub fn open_tun(name: &str) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())?;
    // SAFETY: a structure of bytes, integers and pointers, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF takes a `struct ifreq`, which lives longer than the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(fd)
}

/// A counter in the kernel that a sleeping thread can wait for.
pub fn event() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?)
}

/// Wakes whoever waits for `event`.
pub fn signal(event: impl AsFd) {
    // Only a counter at its maximum can make this fail, and then the sleeper is woken anyway.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags};

    #[test]
    fn a_handle_opens_the_object_again_and_dies_with_it() {
        let dir = std::env::temp_dir().join(format!("nfsplice-handle-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let root = rustix::fs::openat(CWD, &dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        std::fs::write(dir.join("a"), b"x").unwrap();
        let (handle, mount) = name_to_handle(root.as_fd(), c"a").unwrap();
        assert_eq!(name_to_handle(root.as_fd(), c"").unwrap().1, mount);
        std::fs::rename(dir.join("a"), dir.join("b")).unwrap();
        let fd = open_by_handle(root.as_fd(), &handle, OFlags::RDONLY).unwrap();
        let mut byte = [0];
        rustix::io::read(&fd, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(fd);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(open_by_handle(root.as_fd(), &handle, OFlags::RDONLY).is_err());
    }

    #[test]
    fn a_connection_on_the_loopback_has_nothing_retransmitted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(tcp_retransmissions(stream.as_fd()).unwrap(), 0);
        assert!(tcp_retransmissions(event().unwrap().as_fd()).is_err(), "not a socket");
    }

    #[test]
    fn the_identity_is_the_threads_own() {
        std::thread::spawn(|| {
            set_file_system_identity(4711, 4712, &[5, 6]).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("Groups:\t5 6"), "{status}");
            set_file_system_identity(0, 0, &[]).unwrap();
        })
        .join()
        .unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(!status.contains("4711"), "{status}");
    }
}
