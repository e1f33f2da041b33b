/* What the Rust side sees of DPDK, and the calls that wrap DPDK's static inline functions.
 *
 * Each call works on a whole chain or a whole burst: measured, one foreign call per chain costs nothing against the
 * same loop in C, one per mbuf would.
 */
#ifndef NFSPLICE_DPDK_SHIM_H
#define NFSPLICE_DPDK_SHIM_H

#include <rte_config.h>

#include <stdbool.h>
#include <stdint.h>

#include <rte_eal.h>
#include <rte_epoll.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_memzone.h>
#include <rte_version.h>

/* One piece of payload: `length` readable bytes at `address`, seen by the device at `iova`. */
struct nfsplice_piece {
	const void *address;
	uint64_t iova;
	uint32_t length;
};

/* What the device is asked to do to a chain. Lengths in bytes; flags are RTE_MBUF_F_TX_*. */
struct nfsplice_offload {
	uint64_t flags;
	uint16_t l2_len;
	uint16_t l3_len;
	uint16_t l4_len;
	uint16_t tso_segsz;
};

int nfsplice_errno(void);

/* 1 when the calling thread has an lcore id, hence its own caches in every pool. */
int nfsplice_lcore_known(void);

uint16_t nfsplice_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **out, uint16_t count);
uint16_t nfsplice_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **chains, uint16_t count);
uint16_t nfsplice_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **chains, uint16_t count);

/* Builds [header copied into a fresh mbuf][piece 0 by reference] ... [piece count-1 by reference].
 * Sets shared->refcnt to `count` before any mbuf points at it: one reference per piece, dropped when that piece's
 * mbuf is freed; shared->free_cb runs once, with the last one. With `freed_whole` the last piece alone has a reference, and the
 * others are ordinary buffers: for drivers that free a chain's mbufs together and in their order. With count 0, `shared` and `piece_pool` are not used.
 * Returns the chain, or NULL when a pool is empty; then nothing is held and `shared` is untouched.
 * The caller has checked: header_length fits the header pool's data room, 0 < length <= 65535 for every piece. */
struct rte_mbuf *nfsplice_chain_ext(struct rte_mempool *header_pool, struct rte_mempool *piece_pool,
				    const void *header, uint16_t header_length,
				    const struct nfsplice_piece *pieces, uint16_t count,
				    struct rte_mbuf_ext_shared_info *shared, bool freed_whole,
				    const struct nfsplice_offload *offload);

/* The same bytes copied into fresh mbufs of `pool`, each filled up to `room` bytes (the pool's data room without its
 * headroom). The header must fit the first. Returns NULL when the pool cannot give the mbufs. */
struct rte_mbuf *nfsplice_chain_copy(struct rte_mempool *pool, uint16_t room, const void *header,
				     uint16_t header_length, const struct nfsplice_piece *pieces,
				     uint16_t count, const struct nfsplice_offload *offload);

/* rte_pktmbuf_free: the mbuf and what is chained to it. */
void nfsplice_mbuf_free(struct rte_mbuf *chain);

/* What the guest behind a net_vhost port has agreed to: 1 if it takes TCP packets of both IP versions that nobody has cut
 * and whose checksum nobody has filled in; else 0. Also 0 when there is no guest yet, or the driver's library is not loaded. */
int nfsplice_vhost_guest_tso(uint16_t port);

int nfsplice_epoll_create(void);

/* net_tap of 22.11 claims frames of 1,522 bytes at most, so that DPDK refuses a larger MTU, although the driver itself
 * only compares with the MTU recorded for the port and the interface takes what the kernel gives. Records `mtu` for the
 * configured port and sets it on the interface. Where the record lies is found out by setting two MTUs that are allowed
 * and looking what changed in DPDK's own (public, named) zone, and verified by reading it back; -1 if in doubt. */
int nfsplice_tap_mtu(uint16_t port, unsigned int interface_index, uint16_t mtu);

/* Remember and restore the calling thread's CPU mask around rte_eal_init, which changes it. 0 or -1. */
struct nfsplice_affinity {
	uint64_t words[16];
};
int nfsplice_affinity_save(struct nfsplice_affinity *out);
int nfsplice_affinity_restore(const struct nfsplice_affinity *saved);

#endif
