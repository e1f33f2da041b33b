//! Between a device and the transports.
//!
//! - `device`: the contract with what is below; `memory_link` (with `memory_offload` and `memory_router`) and `dpdk_device` fulfil it.
//! - `capture`: a device that shows its frames to somebody.
//! - `interface`: one port's IP layer: addresses, ARP, IPv4, ICMP; frames in, transport packets out, and back.
//! - `neighbour`: the table behind ARP.
//! - `spread`: which queue of a port a connection belongs to.
//! - `udp`: datagrams through an interface.
//!
//! May import: `wire`, `buf`, `time`, `counters`.

pub mod capture;
pub mod device;
#[cfg(feature = "dpdk")]
pub mod dpdk_device;
pub mod interface;
pub mod memory_link;
pub mod memory_offload;
pub mod memory_router;
pub mod neighbour;
pub mod spread;
pub mod udp;

pub use device::{Checksum, Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
pub use interface::{Ingress, Interface, InterfaceOptions, OutgoingPacket, PortLead, SegmentInPlace, SendRefused, UdpDatagram};
