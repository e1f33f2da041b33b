//! What NFSv3 counts: calls by procedure, errors by status, bytes.

use crate::counters;
use crate::store::Status;

counters! {
    /// What one core's NFSv3 counts.
    pub struct Nfs3Counters {
        /// NULL calls.
        calls_null,
        /// GETATTR calls.
        calls_getattr,
        /// SETATTR calls.
        calls_setattr,
        /// LOOKUP calls.
        calls_lookup,
        /// ACCESS calls.
        calls_access,
        /// READLINK calls.
        calls_readlink,
        /// READ calls.
        calls_read,
        /// WRITE calls.
        calls_write,
        /// CREATE calls.
        calls_create,
        /// MKDIR calls.
        calls_mkdir,
        /// SYMLINK calls.
        calls_symlink,
        /// MKNOD calls.
        calls_mknod,
        /// REMOVE calls.
        calls_remove,
        /// RMDIR calls.
        calls_rmdir,
        /// RENAME calls.
        calls_rename,
        /// LINK calls.
        calls_link,
        /// READDIR calls.
        calls_readdir,
        /// READDIRPLUS calls.
        calls_readdirplus,
        /// FSSTAT calls.
        calls_fsstat,
        /// FSINFO calls.
        calls_fsinfo,
        /// PATHCONF calls.
        calls_pathconf,
        /// COMMIT calls.
        calls_commit,
        /// Calls answered NFS3_OK.
        status_ok,
        /// Calls answered NFS3ERR_PERM.
        status_perm,
        /// Calls answered NFS3ERR_NOENT.
        status_noent,
        /// Calls answered NFS3ERR_IO.
        status_io,
        /// Calls answered NFS3ERR_NXIO.
        status_nxio,
        /// Calls answered NFS3ERR_ACCES.
        status_acces,
        /// Calls answered NFS3ERR_EXIST.
        status_exist,
        /// Calls answered NFS3ERR_XDEV.
        status_xdev,
        /// Calls answered NFS3ERR_NODEV.
        status_nodev,
        /// Calls answered NFS3ERR_NOTDIR.
        status_notdir,
        /// Calls answered NFS3ERR_ISDIR.
        status_isdir,
        /// Calls answered NFS3ERR_INVAL.
        status_inval,
        /// Calls answered NFS3ERR_FBIG.
        status_fbig,
        /// Calls answered NFS3ERR_NOSPC.
        status_nospc,
        /// Calls answered NFS3ERR_ROFS.
        status_rofs,
        /// Calls answered NFS3ERR_MLINK.
        status_mlink,
        /// Calls answered NFS3ERR_NAMETOOLONG.
        status_nametoolong,
        /// Calls answered NFS3ERR_NOTEMPTY.
        status_notempty,
        /// Calls answered NFS3ERR_DQUOT.
        status_dquot,
        /// Calls answered NFS3ERR_STALE.
        status_stale,
        /// Calls answered NFS3ERR_BADHANDLE.
        status_badhandle,
        /// Calls answered NFS3ERR_NOT_SYNC.
        status_not_sync,
        /// Calls answered NFS3ERR_BAD_COOKIE.
        status_bad_cookie,
        /// Calls answered NFS3ERR_NOTSUPP.
        status_notsupp,
        /// Calls answered NFS3ERR_TOOSMALL.
        status_toosmall,
        /// Calls answered NFS3ERR_SERVERFAULT.
        status_serverfault,
        /// Calls answered NFS3ERR_BADTYPE.
        status_badtype,
        /// Calls answered NFS3ERR_JUKEBOX.
        status_jukebox,
        /// Calls whose arguments do not decode.
        garbage_arguments,
        /// Calls refused with JUKEBOX because too many were parked.
        parked_full,
        /// Completions of a store that no parked call waits for.
        completions_unknown,
        /// Bytes of file data in READ replies.
        read_bytes,
        /// Bytes of file data taken from WRITE calls.
        write_bytes,
    }
    gauges {
        /// Calls that wait for a store.
        parked,
    }
}

impl Nfs3Counters {
    /// Counts a call of a procedure that exists.
    pub fn count_call(&mut self, procedure: u32) {
        let counter = match procedure {
            1 => &mut self.calls_getattr,
            2 => &mut self.calls_setattr,
            3 => &mut self.calls_lookup,
            4 => &mut self.calls_access,
            5 => &mut self.calls_readlink,
            6 => &mut self.calls_read,
            7 => &mut self.calls_write,
            8 => &mut self.calls_create,
            9 => &mut self.calls_mkdir,
            10 => &mut self.calls_symlink,
            11 => &mut self.calls_mknod,
            12 => &mut self.calls_remove,
            13 => &mut self.calls_rmdir,
            14 => &mut self.calls_rename,
            15 => &mut self.calls_link,
            16 => &mut self.calls_readdir,
            17 => &mut self.calls_readdirplus,
            18 => &mut self.calls_fsstat,
            19 => &mut self.calls_fsinfo,
            20 => &mut self.calls_pathconf,
            21 => &mut self.calls_commit,
            _ => &mut self.calls_null,
        };
        *counter += 1;
    }

    /// Counts the status of an answer; `None`: NFS3_OK.
    pub fn count_status(&mut self, status: Option<Status>) {
        let counter = match status {
            None => &mut self.status_ok,
            Some(Status::NotOwner) => &mut self.status_perm,
            Some(Status::NoEntry) => &mut self.status_noent,
            Some(Status::Io) => &mut self.status_io,
            Some(Status::NoDeviceAddress) => &mut self.status_nxio,
            Some(Status::AccessDenied) => &mut self.status_acces,
            Some(Status::Exists) => &mut self.status_exist,
            Some(Status::CrossDevice) => &mut self.status_xdev,
            Some(Status::NoDevice) => &mut self.status_nodev,
            Some(Status::NotDirectory) => &mut self.status_notdir,
            Some(Status::IsDirectory) => &mut self.status_isdir,
            Some(Status::InvalidArgument) => &mut self.status_inval,
            Some(Status::FileTooLarge) => &mut self.status_fbig,
            Some(Status::NoSpace) => &mut self.status_nospc,
            Some(Status::ReadOnly) => &mut self.status_rofs,
            Some(Status::TooManyLinks) => &mut self.status_mlink,
            Some(Status::NameTooLong) => &mut self.status_nametoolong,
            Some(Status::NotEmpty) => &mut self.status_notempty,
            Some(Status::QuotaExceeded) => &mut self.status_dquot,
            Some(Status::Stale) => &mut self.status_stale,
            Some(Status::BadHandle) => &mut self.status_badhandle,
            Some(Status::NotSync) => &mut self.status_not_sync,
            Some(Status::BadCookie) => &mut self.status_bad_cookie,
            Some(Status::NotSupported) => &mut self.status_notsupp,
            Some(Status::TooSmall) => &mut self.status_toosmall,
            Some(Status::ServerFault) => &mut self.status_serverfault,
            Some(Status::BadType) => &mut self.status_badtype,
            Some(Status::Delay) => &mut self.status_jukebox,
        };
        *counter += 1;
    }
}
