//! READDIR and READDIRPLUS (RFC 1813 sections 3.3.16 and 3.3.17).
//!
//! The client's limits are kept to the byte: `reply_max` bounds the whole resok structure, dircount what READDIRPLUS tells of
//! names alone. Where not even one entry fits, the answer is TOOSMALL, never an empty page that would not get on.

use super::decode::{self, Listing, Refusal, Request, Scratch, Verb};
use super::encode;
use super::procedures::{Reply, unexpected};
use crate::rpc::xdr::{Decoder, Encoder, padding};
use crate::store::{DirectoryEntry, Failure, ObjectId, Operation, Outcome, Status, Wcc};

/// Bytes of a resok around its entries: post_op_attr, cookieverf3, the end of the list, eof.
const AROUND_BYTES: u32 = encode::POST_OP_ATTR_BYTES + 8 + 4 + 4;
/// Bytes of an entry3 beside its name: that it follows, fileid, length of the name, cookie.
const ENTRY_BYTES: u32 = 4 + 8 + 4 + 8;
/// Least bytes of an entryplus3: name of one byte, no attributes, no handle.
const ENTRY_PLUS_BYTES_MIN: u32 = ENTRY_BYTES + 4 + 4 + 4;
/// Bytes of an entry that count towards dircount beside the name: fileid, length of the name, cookie.
const DIRECTORY_INFORMATION_BYTES: u32 = 8 + 4 + 8;

pub fn decode_readdir<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let cookie = d.u64()?;
    let verifier = d.opaque_fixed()?;
    let reply_max = d.u32()?;
    let listing = Listing { cookie, verifier, names_max: reply_max, reply_max, plus: false };
    Ok(Request::new(handle, Verb::ReadDirectory(listing)))
}

pub fn decode_readdirplus<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let cookie = d.u64()?;
    let verifier = d.opaque_fixed()?;
    let names_max = d.u32()?;
    let reply_max = d.u32()?;
    let listing = Listing { cookie, verifier, names_max, reply_max, plus: true };
    Ok(Request::new(handle, Verb::ReadDirectory(listing)))
}

/// Asks the store for no more entries than could fit: it counts 24 bytes and the name for each, which is at most what one
/// takes on the wire. (dircount counts 20 and the padded name: up to 4 bytes less, so that bound is scaled up.)
pub fn operation(directory: ObjectId, listing: &Listing) -> Operation<'static> {
    let room = listing.reply_max.saturating_sub(AROUND_BYTES);
    let least = if listing.plus { ENTRY_PLUS_BYTES_MIN } else { ENTRY_BYTES + 4 };
    let names_room = listing.names_max.saturating_add(listing.names_max / 4);
    Operation::ReadDirectory {
        directory,
        cookie: listing.cookie,
        verifier: listing.verifier,
        bytes_max: room.min(names_room),
        entries_max: room / least,
        with_attributes: listing.plus,
    }
}

fn encode_entry(e: &mut Encoder<'_>, entry: &DirectoryEntry, plus: bool, reply: &Reply<'_>) {
    e.bool(true);
    e.u64(entry.file_id);
    e.opaque(&entry.name);
    e.u64(entry.cookie);
    if !plus {
        return;
    }
    match &entry.object {
        Some((object, attributes)) => {
            encode::post_op_attr(e, Some(attributes));
            encode::post_op_fh3(e, &reply.handle(*object));
        }
        None => {
            encode::post_op_attr(e, None);
            e.bool(false);
        }
    }
}

pub fn encode_entries(e: &mut Encoder<'_>, outcome: &Outcome, reply: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Entries { entries, verifier, end, directory } = outcome else { return unexpected() };
    let Some(listing) = &reply.listing else { return unexpected() };
    let start = e.position();
    encode::post_op_attr(e, Some(directory));
    e.opaque_fixed(verifier);
    // What stays free for the end of the list and eof.
    let limit = start + (listing.reply_max as usize).saturating_sub(8);
    let mut names_left = listing.names_max as usize;
    let mut encoded = 0;
    for entry in entries {
        let before = e.position();
        let information = DIRECTORY_INFORMATION_BYTES as usize + entry.name.len() + padding(entry.name.len());
        encode_entry(e, entry, listing.plus, reply);
        if e.overflowed() || e.position() > limit || (listing.plus && information > names_left) {
            e.truncate(before);
            break;
        }
        names_left = names_left.saturating_sub(information);
        encoded += 1;
    }
    let end = *end && encoded == entries.len();
    if (encoded == 0 && !end) || e.position() > limit {
        let wcc = Wcc { before: None, after: Some(*directory) };
        return Err(Failure { status: Status::TooSmall, wcc: [wcc, Wcc::default()] });
    }
    e.bool(false);
    e.bool(end);
    Ok(())
}
