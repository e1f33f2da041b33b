/* See shim.h. */
#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Enough for the longest chain the Rust side may ask for (MAX_CHAIN_PIECES there is lower, and asserted). */
#define CHAIN_MBUFS_MAX 256

int nfsplice_errno(void)
{
	return rte_errno;
}

int nfsplice_lcore_known(void)
{
	return rte_lcore_id() != LCORE_ID_ANY;
}

uint16_t nfsplice_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **out, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, out, count);
}

uint16_t nfsplice_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **chains, uint16_t count)
{
	return rte_eth_tx_prepare(port, queue, chains, count);
}

uint16_t nfsplice_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **chains, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, chains, count);
}

static inline void set_offload(struct rte_mbuf *m, const struct nfsplice_offload *offload)
{
	m->ol_flags |= offload->flags;
	m->tx_offload = 0;
	m->l2_len = offload->l2_len;
	m->l3_len = offload->l3_len;
	m->l4_len = offload->l4_len;
	m->tso_segsz = offload->tso_segsz;
}

/* rte_pktmbuf_attach_extbuf, but each field is written once. Without `shared` nothing is to be released with the buffer: it is not
 * marked as external, so that freeing it only puts it back. It then keeps an address that is not its own, which nobody reads
 * before the next attach: these pools' buffers have no room of their own and come from here alone. */
static inline void attach(struct rte_mbuf *m, const struct nfsplice_piece *piece,
			  struct rte_mbuf_ext_shared_info *shared)
{
	/* The cast drops const: DPDK has no read-only buffers. Nothing on the transmit side writes here:
	 * header edits by drivers stay in the first segment. */
	m->buf_addr = (void *)(uintptr_t)piece->address;
	rte_mbuf_iova_set(m, piece->iova);
	m->buf_len = (uint16_t)piece->length;
	m->data_off = 0;
	m->data_len = (uint16_t)piece->length;
	m->pkt_len = piece->length;
	if (shared != NULL) {
		m->ol_flags = RTE_MBUF_F_EXTERNAL;
		m->shinfo = shared;
	} else {
		m->ol_flags = 0;
	}
}

struct rte_mbuf *nfsplice_chain_ext(struct rte_mempool *header_pool, struct rte_mempool *piece_pool,
				    const void *header, uint16_t header_length,
				    const struct nfsplice_piece *pieces, uint16_t count,
				    struct rte_mbuf_ext_shared_info *shared, bool freed_whole,
				    const struct nfsplice_offload *offload)
{
	struct rte_mbuf *mbufs[CHAIN_MBUFS_MAX];
	struct rte_mbuf *head, *last;
	uint32_t total = header_length;
	uint16_t i;

	if (unlikely(count > CHAIN_MBUFS_MAX))
		return NULL;
	head = rte_pktmbuf_alloc(header_pool);
	if (unlikely(head == NULL))
		return NULL;
	if (count > 0) {
		/* Not rte_pktmbuf_alloc_bulk, which resets fields that nobody reads behind the first segment: a buffer comes
		 * out of the pool with one reference, one segment and no successor (rte_mbuf_raw_free's contract). */
		if (unlikely(rte_mempool_get_bulk(piece_pool, (void **)mbufs, count) != 0)) {
			rte_pktmbuf_free(head);
			return NULL;
		}
		/* A plain store: nobody else can reach this object yet. */
		shared->refcnt = freed_whole ? 1 : count;
	}
	memcpy(rte_pktmbuf_mtod(head, void *), header, header_length);
	last = head;
	for (i = 0; i < count; i++) {
		struct rte_mbuf *m = mbufs[i];

		attach(m, &pieces[i], freed_whole && i + 1 < count ? NULL : shared);
		total += pieces[i].length;
		last->next = m;
		last = m;
	}
	head->data_len = header_length;
	head->pkt_len = total;
	head->nb_segs = (uint16_t)(count + 1);
	set_offload(head, offload);
	return head;
}

struct rte_mbuf *nfsplice_chain_copy(struct rte_mempool *pool, uint16_t room, const void *header,
				     uint16_t header_length, const struct nfsplice_piece *pieces,
				     uint16_t count, const struct nfsplice_offload *offload)
{
	struct rte_mbuf *mbufs[CHAIN_MBUFS_MAX];
	uint32_t total = header_length;
	uint16_t i, at = 0, segments;

	for (i = 0; i < count; i++)
		total += pieces[i].length;
	segments = (uint16_t)RTE_MAX((total + room - 1) / room, 1u);
	if (unlikely(header_length > room || segments > CHAIN_MBUFS_MAX ||
		     rte_pktmbuf_alloc_bulk(pool, mbufs, segments) != 0))
		return NULL;
	memcpy(rte_pktmbuf_mtod(mbufs[0], void *), header, header_length);
	mbufs[0]->data_len = header_length;
	for (i = 0; i < count; i++) {
		const uint8_t *from = pieces[i].address;
		uint32_t left = pieces[i].length;

		while (left > 0) {
			struct rte_mbuf *m = mbufs[at];
			uint32_t step = RTE_MIN(left, (uint32_t)(room - m->data_len));

			if (step == 0) {
				at++;
				continue;
			}
			memcpy(rte_pktmbuf_mtod_offset(m, void *, m->data_len), from, step);
			m->data_len = (uint16_t)(m->data_len + step);
			from += step;
			left -= step;
		}
	}
	for (i = 0; i + 1 < segments; i++)
		mbufs[i]->next = mbufs[i + 1];
	mbufs[0]->pkt_len = total;
	mbufs[0]->nb_segs = segments;
	set_offload(mbufs[0], offload);
	return mbufs[0];
}

void nfsplice_mbuf_free(struct rte_mbuf *chain)
{
	rte_pktmbuf_free(chain);
}

/* A function of a driver, which EAL has loaded (or not) at run time: nothing links against drivers. */
static void *driver_symbol(const char *library, const char *name)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
	void *symbol = dlsym(handle != NULL ? handle : RTLD_DEFAULT, name);

	if (handle != NULL)
		dlclose(handle);
	return symbol;
}

int nfsplice_vhost_guest_tso(uint16_t port)
{
	/* Bits of virtio's feature word (VIRTIO 1.1, 5.1.3). */
	const uint64_t wanted = 1ULL << 1 /* GUEST_CSUM */ | 1ULL << 7 /* GUEST_TSO4 */ | 1ULL << 8 /* GUEST_TSO6 */;
	int (*vid_of)(uint16_t) = driver_symbol("librte_net_vhost.so.23", "rte_eth_vhost_get_vid_from_port_id");
	int (*features_of)(int, uint64_t *) = driver_symbol("librte_vhost.so.23", "rte_vhost_get_negotiated_features");
	uint64_t features = 0;
	int vid;

	if (vid_of == NULL || features_of == NULL)
		return 0;
	vid = vid_of(port);
	return vid >= 0 && features_of(vid, &features) == 0 && (features & wanted) == wanted;
}

int nfsplice_epoll_create(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

int nfsplice_affinity_save(struct nfsplice_affinity *out)
{
	_Static_assert(sizeof(cpu_set_t) <= sizeof(out->words), "a CPU mask fits");
	memset(out, 0, sizeof(*out));
	return sched_getaffinity(0, sizeof(cpu_set_t), (cpu_set_t *)out->words);
}

int nfsplice_affinity_restore(const struct nfsplice_affinity *saved)
{
	return sched_setaffinity(0, sizeof(cpu_set_t), (const cpu_set_t *)saved->words);
}

static int set_interface_mtu(unsigned int index, uint16_t mtu)
{
	struct ifreq request;
	int fd, result;

	memset(&request, 0, sizeof(request));
	if (if_indextoname(index, request.ifr_name) == NULL)
		return -1;
	request.ifr_mtu = mtu;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	result = ioctl(fd, SIOCSIFMTU, &request);
	close(fd);
	return result;
}

/* The only u16 among the `size` bytes at `from` that follows the port's MTU from one value to another; NULL if in doubt. */
static volatile uint16_t *find_mtu_record(uint16_t port, char *from, size_t size)
{
	const uint16_t first = 1489, second = 1471;
	volatile uint16_t *found = NULL;
	size_t candidates[16], count = 0, at, i;

	if (rte_eth_dev_set_mtu(port, first) != 0)
		return NULL;
	for (at = 0; at + sizeof(uint16_t) <= size; at += sizeof(uint16_t))
		if (*(volatile uint16_t *)(from + at) == first && count < RTE_DIM(candidates))
			candidates[count++] = at;
	if (rte_eth_dev_set_mtu(port, second) != 0)
		return NULL;
	for (i = 0; i < count; i++) {
		volatile uint16_t *value = (volatile uint16_t *)(from + candidates[i]);

		if (*value != second)
			continue;
		if (found != NULL)
			return NULL;
		found = value;
	}
	return found;
}

int nfsplice_tap_mtu(uint16_t port, unsigned int interface_index, uint16_t mtu)
{
	const struct rte_memzone *zone = rte_memzone_lookup("rte_eth_dev_data");
	char name[RTE_ETH_NAME_MAX_LEN] = "";
	volatile uint16_t *record = NULL;
	uint16_t now = 0;
	size_t at;

	if (zone == NULL || rte_eth_dev_get_name_by_port(port, name) != 0)
		return -1;
	for (at = 0; at + sizeof(name) <= zone->len && record == NULL; at += 8) {
		char *entry = (char *)zone->addr + at;

		/* One port's record starts with its name and is smaller than 4 KiB. */
		if (memcmp(entry, name, strlen(name) + 1) == 0)
			record = find_mtu_record(port, entry, RTE_MIN(zone->len - at, (size_t)4096));
	}
	if (record == NULL)
		return -1;
	*record = mtu;
	if (rte_eth_dev_get_mtu(port, &now) != 0 || now != mtu)
		return -1;
	return set_interface_mtu(interface_index, mtu);
}
