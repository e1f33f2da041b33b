//! Between a device and the transports. Written in the commits that follow; `device` is the contract with what is below.
//!
//! May import: `wire`, `buf`, `time`, `counters`.

pub mod device;

pub use device::{Checksum, Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
