//! A session's record in shared memory: how one thread writes it while others read it whole.
//!
//! `owner` says whose it is; a claim is one compare-and-swap from nobody. Everything else is guarded by `sequence`: odd
//! while the writer changes what identifies the session, and left odd while the record is free, so that a reader never
//! takes an earlier session's data for the new owner's. `id` is stored last when a session begins and cleared first when
//! it ends: 0 means there is nothing to tell, even if the writer died half way. Bytes, clocks and the end are plain stores.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, fence};

use super::layout::Owner;
use super::name::Name;
use super::record::Opening;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    Established,
    /// Its end is decided (`reason`) and its closing counters are written.
    Closed,
}

#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct RecordSlot {
    owner: AtomicU64,
    sequence: AtomicU32,
    /// Phase in the upper half, reason in the lower.
    state: AtomicU32,
    id: AtomicU64,
    listener: AtomicU32,
    pool: AtomicU32,
    backend: AtomicU32,
    _kept: AtomicU32,
    opened_unix_us: AtomicU64,
    opened_ms: AtomicU64,
    /// Id of the session above the lowest byte, the caller's code there; another id: nothing is said.
    protection: AtomicU64,
    client: Address,
    backend_address: Address,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) last_byte_ms: AtomicU64,
    pub(super) unsent_to_client: AtomicI64,
    pub(super) unsent_to_backend: AtomicI64,
    /// What the caller must find again of a session whose protection is said, should its writer die.
    pub(super) marks: AtomicU64,
    /// For the peer's own address, tries, moves.
    _kept3: [AtomicU64; 10],
}

/// An address in four words; all 0: none.
#[repr(C)]
#[derive(Debug)]
struct Address {
    /// 4 or 6 in the upper half, port in the lower, of a 32-bit value.
    family_and_port: AtomicU64,
    /// The address as a 128-bit number, lower half first.
    number: [AtomicU64; 2],
    /// IPv6: flow label in the upper half, scope in the lower.
    flow_and_scope: AtomicU64,
}

/// What was read of a record, names still as indexes.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) id: u64,
    pub(super) owner: Owner,
    pub(super) phase: Phase,
    pub(super) reason: u16,
    pub(super) listener: Name,
    pub(super) pool: Name,
    pub(super) backend: Option<Name>,
    pub(super) client: Option<SocketAddr>,
    pub(super) backend_address: Option<SocketAddr>,
    pub(super) opened_unix_us: u64,
    pub(super) opened_ms: u64,
    pub(super) last_byte_ms: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) unsent_to_client: i64,
    pub(super) unsent_to_backend: i64,
    pub(super) protection: u8,
    pub(super) marks: u64,
}

/// In `backend`: none yet.
const NO_NAME: u32 = u32::MAX;
/// A writer is inside its odd window for some 20 stores; only one that was descheduled or killed there outlasts these.
const SPINS: u32 = 64;
const YIELDS: u32 = 64;

impl RecordSlot {
    pub(super) fn claim(&self, owner: Owner) -> bool {
        // Looked at first: a failing exchange would take the line away from its owner.
        self.owner.load(Relaxed) == Owner::NOBODY
            && self.owner.compare_exchange(Owner::NOBODY, owner.word(), Acquire, Relaxed).is_ok()
    }

    pub(super) fn owner(&self) -> u64 {
        self.owner.load(Acquire)
    }

    /// 0: nothing is to be told of it.
    pub(super) fn id(&self) -> u64 {
        self.id.load(Acquire)
    }

    /// After everything else its owner has written.
    pub(super) fn give(&self, to: Owner) {
        self.owner.store(to.word(), Release);
    }

    /// [`Self::give`] in the name of an owner that is dead, if it is still the owner.
    pub(super) fn give_for(&self, from: u64, to: Owner) -> bool {
        self.owner.compare_exchange(from, to.word(), AcqRel, Acquire).is_ok()
    }

    /// Makes readable what a dead owner has left half written but for what it was writing; `fields` knows what can be trusted.
    pub(super) fn settle(&self) {
        let odd = self.enter();
        self.sequence.store(odd.wrapping_add(1), Release);
    }

    /// Writes a session into a record just claimed.
    pub(super) fn begin(&self, id: u64, opening: &Opening) {
        let odd = self.enter();
        self.listener.store(opening.listener.0, Relaxed);
        self.pool.store(opening.pool.0, Relaxed);
        self.backend.store(NO_NAME, Relaxed);
        self.client.store(opening.client);
        self.backend_address.store(None);
        self.opened_unix_us.store(opening.opened_unix_us, Relaxed);
        self.opened_ms.store(opening.opened_ms, Relaxed);
        self.last_byte_ms.store(opening.opened_ms, Relaxed);
        self.received.store(0, Relaxed);
        self.sent.store(0, Relaxed);
        self.unsent_to_client.store(-1, Relaxed);
        self.unsent_to_backend.store(-1, Relaxed);
        self.marks.store(0, Relaxed);
        self.state.store(state(Phase::Connecting, 0), Relaxed);
        self.id.store(id, Release);
        self.sequence.store(odd.wrapping_add(1), Release);
    }

    pub(super) fn establish(&self, backend: Name, address: SocketAddr) {
        let odd = self.enter();
        self.backend_address.store(Some(address));
        self.backend.store(backend.0, Relaxed);
        // After the backend: whoever finds this word finds the backend too, even if we die here.
        self.state.store(state(Phase::Established, 0), Release);
        self.sequence.store(odd.wrapping_add(1), Release);
    }

    /// One store, after all that must be true by then.
    pub(super) fn end(&self, reason: u16) {
        self.state.store(state(Phase::Closed, reason), Release);
    }

    /// Ids stay below 2^53.
    pub(super) fn protect(&self, id: u64, code: u8) {
        self.protection.store(id << 8 | u64::from(code), Relaxed);
    }

    pub(super) fn protection(&self, id: u64) -> u8 {
        let word = self.protection.load(Relaxed);
        if word >> 8 == id { (word & 0xff) as u8 } else { 0 }
    }

    /// Whose this session is and how far it has come, also where its writer died half way. `None`: it is not here.
    pub(super) fn standing(&self, id: u64) -> Option<(Owner, Phase, u16)> {
        let is_here = || self.id() == id;
        let owner = is_here().then(|| Owner::of(self.owner()))??;
        let (phase, reason) = phase_and_reason(self.state.load(Acquire))?;
        is_here().then_some((owner, phase, reason))
    }

    /// Nothing of the session is read any more; then anyone may claim the record.
    pub(super) fn free(&self) {
        self.enter();
        self.id.store(0, Relaxed);
        self.owner.store(Owner::NOBODY, Release);
    }

    /// The session, if there is one, as it was at one moment (its live figures: each as it was then or a little later).
    pub(super) fn read(&self) -> Option<Fields> {
        for attempt in 0..SPINS + YIELDS {
            let before = self.sequence.load(Acquire);
            let owner = Owner::of(self.owner())?;
            if before.is_multiple_of(2) {
                let fields = self.fields(owner);
                fence(Acquire);
                if self.sequence.load(Relaxed) == before {
                    return fields;
                }
            }
            if attempt < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        None
    }

    /// What a dead owner has left: nobody writes any more, so there is nothing to wait for.
    pub(super) fn remains(&self) -> Option<Fields> {
        self.fields(Owner::of(self.owner())?)
    }

    fn fields(&self, owner: Owner) -> Option<Fields> {
        let id = self.id.load(Acquire);
        let (phase, reason) = phase_and_reason(self.state.load(Acquire))?;
        // Before that it may be half written.
        let backend = Some(self.backend.load(Relaxed)).filter(|_| phase != Phase::Connecting);
        let backend = backend.filter(|&name| name != NO_NAME).map(Name);
        (id != 0).then(|| Fields {
            id,
            owner,
            phase,
            reason,
            listener: Name(self.listener.load(Relaxed)),
            pool: Name(self.pool.load(Relaxed)),
            backend,
            client: self.client.load(),
            backend_address: backend.and_then(|_| self.backend_address.load()),
            opened_unix_us: self.opened_unix_us.load(Relaxed),
            opened_ms: self.opened_ms.load(Relaxed),
            last_byte_ms: self.last_byte_ms.load(Relaxed),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            unsent_to_client: self.unsent_to_client.load(Relaxed),
            unsent_to_backend: self.unsent_to_backend.load(Relaxed),
            protection: self.protection(id),
            marks: self.marks.load(Relaxed),
        })
    }

    /// Makes the sequence odd (it is already in a free record, or where an owner died inside) before any store that follows.
    fn enter(&self) -> u32 {
        let odd = self.sequence.load(Relaxed) | 1;
        self.sequence.store(odd, Relaxed);
        fence(Release);
        odd
    }
}

fn state(phase: Phase, reason: u16) -> u32 {
    let phase = match phase {
        Phase::Connecting => 1,
        Phase::Established => 2,
        Phase::Closed => 3,
    };
    phase << 16 | u32::from(reason)
}

fn phase_and_reason(state: u32) -> Option<(Phase, u16)> {
    let phase = match state >> 16 {
        1 => Phase::Connecting,
        2 => Phase::Established,
        3 => Phase::Closed,
        _ => return None,
    };
    Some((phase, (state & 0xffff) as u16))
}

impl Address {
    fn store(&self, address: Option<SocketAddr>) {
        let (family, number, flow_and_scope) = match address {
            None => (0, 0, 0),
            Some(SocketAddr::V4(v4)) => (4, u128::from(v4.ip().to_bits()), 0),
            Some(SocketAddr::V6(v6)) => {
                (6, v6.ip().to_bits(), u64::from(v6.flowinfo()) << 32 | u64::from(v6.scope_id()))
            }
        };
        let port = address.map_or(0, |address| address.port());
        self.family_and_port.store(family << 16 | u64::from(port), Relaxed);
        self.number[0].store(((number << 64) >> 64) as u64, Relaxed);
        self.number[1].store((number >> 64) as u64, Relaxed);
        self.flow_and_scope.store(flow_and_scope, Relaxed);
    }

    fn load(&self) -> Option<SocketAddr> {
        let both = self.family_and_port.load(Relaxed);
        let port = (both & 0xffff) as u16;
        let [low, high] = [&self.number[0], &self.number[1]].map(|half| half.load(Relaxed));
        match both >> 16 {
            4 => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits((low & 0xffff_ffff) as u32)), port)),
            6 => {
                let ip = Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
                let extra = self.flow_and_scope.load(Relaxed);
                let (flow, scope) = ((extra >> 32) as u32, (extra & 0xffff_ffff) as u32);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
            }
            _ => None,
        }
    }
}
