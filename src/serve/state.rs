//! What outlives a restart: the keys of the file handles and of the addresses. And what must not: the write verifier.
//!
//! Layout of the state directory: `handle.key` and `address.key`, 16 random bytes each, mode 0600, written once; `lock`, held by the
//! running server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

const KEY_LEN: usize = 16;

/// The state directory of a running server; another server cannot have it at the same time.
pub struct StateDirectory {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl StateDirectory {
    /// Makes the directory if it is not there, and locks it.
    pub fn open(path: &Path) -> anyhow::Result<StateDirectory> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the state directory {}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateDirectory { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another server uses the state directory {}; give each server its own server.state_dir", path.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
        }
    }

    /// The key that seals file handles: made at the first start, the same ever after. Losing it makes every handle that
    /// clients hold a bad one.
    pub fn handle_key(&self) -> anyhow::Result<[u8; KEY_LEN]> {
        self.key("handle.key", "let clients mount again")
    }

    /// The key that the identifiers of IPv6 addresses are made from (RFC 7217), kept in the same way. Losing it changes those
    /// addresses.
    pub fn address_key(&self) -> anyhow::Result<[u8; KEY_LEN]> {
        self.key("address.key", "expect other addresses")
    }

    /// `else_what`: what to do where there is no backup.
    fn key(&self, name: &str, else_what: &str) -> anyhow::Result<[u8; KEY_LEN]> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => match bytes.as_slice().try_into() {
                Ok(key) => Ok(key),
                Err(_) => bail!(
                    "{}: {} bytes, expected {KEY_LEN}; restore it from a backup, or remove it and {else_what}",
                    path.display(),
                    bytes.len()
                ),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = random()?;
                write_durably(&self.path, &path, &key).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(key)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the operating system gives no random bytes")?;
    Ok(bytes)
}

/// All of it or nothing, and on the disk when this returns.
fn write_durably(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nfsplice-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn the_key_is_made_once_and_kept() {
        let path = scratch("key");
        let first = StateDirectory::open(&path).unwrap().handle_key().unwrap();
        let again = StateDirectory::open(&path).unwrap().handle_key().unwrap();
        assert_eq!(first, again);
        assert_ne!(first, [0; KEY_LEN]);
        let addresses = StateDirectory::open(&path).unwrap().address_key().unwrap();
        assert_eq!(addresses, StateDirectory::open(&path).unwrap().address_key().unwrap());
        assert_ne!(addresses, first);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn two_servers_cannot_share_it() {
        let path = scratch("lock");
        let _held = StateDirectory::open(&path).unwrap();
        let error = StateDirectory::open(&path).err().unwrap();
        assert!(error.to_string().contains("another server uses"), "{error}");
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_damaged_key_is_not_replaced_silently() {
        let path = scratch("damaged");
        let state = StateDirectory::open(&path).unwrap();
        fs::write(path.join("handle.key"), b"short").unwrap();
        assert!(state.handle_key().unwrap_err().to_string().contains("5 bytes, expected 16"));
        fs::remove_dir_all(&path).unwrap();
    }
}
