//! What of a batch is not in its record: the state and the bytes in hand of each item, one after the other in a memfd.

use super::message::Entry;
use super::{HAND, ITEMS, Item, STATE};

/// What of an item lies in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub state: String,
    pub hand: [Vec<u8>; 2],
}

/// Why a body is not what its entries announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body of a batch has {got} bytes where {wanted} are announced")]
    Length { wanted: usize, got: usize },
    #[error("session {id}: its state is not text")]
    NotText { id: u64 },
}

/// Bytes of the body of these entries; the codec has bounded each.
pub fn len(entries: &[Entry]) -> usize {
    entries.iter().flat_map(|entry| [entry.state, entry.hand[0], entry.hand[1]]).map(|part| part as usize).sum()
}

pub(super) fn pack(items: &[Item]) -> Vec<u8> {
    let mut body = Vec::with_capacity(items.iter().flat_map(parts).map(<[u8]>::len).sum());
    for part in items.iter().flat_map(parts) {
        body.extend_from_slice(part);
    }
    body
}

/// The parts of a body, one for each entry. Total: any bytes give parts or an error.
pub fn unpack(entries: &[Entry], body: &[u8]) -> Result<Vec<Part>, BodyError> {
    let wrong = BodyError::Length { wanted: len(entries), got: body.len() };
    let mut rest = body;
    let mut take = |len: u32| {
        let (part, tail) = rest.split_at_checked(len as usize).ok_or(wrong)?;
        rest = tail;
        Ok(part)
    };
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let state = std::str::from_utf8(take(entry.state)?).map_err(|_| BodyError::NotText { id: entry.id })?;
        let hand = [take(entry.hand[0])?.to_vec(), take(entry.hand[1])?.to_vec()];
        found.push(Part { state: state.to_owned(), hand });
    }
    if rest.is_empty() { Ok(found) } else { Err(wrong) }
}

fn parts(item: &Item) -> [&[u8]; 3] {
    [item.state.as_bytes(), &item.hand[0], &item.hand[1]]
}

/// Bytes of the longest body.
pub const MOST: usize = ITEMS * (STATE + 2 * HAND);
