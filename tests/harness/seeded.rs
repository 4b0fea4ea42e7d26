//! Byte streams that prove themselves: each byte follows from a seed and its place, so a lost, doubled, swapped or
//! foreign byte is seen where it arrives, and a clean end of file before the end mark is seen as truncation.
//!
//! A client opens with a [`Hello`]; then both sides send frames (`u32` length, payload) and an empty frame as end mark.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload of a frame. Above the relay's buffer, so that long streams exercise both ways of moving bytes.
pub const FRAME: u32 = 64 * 1024;
const MAGIC: [u8; 8] = *b"seeded\x00\x01";
const SIZE: usize = 32;
/// Bytes of a [`Hello`].
pub const HELLO: u64 = SIZE as u64;
/// Sets the stream of one direction apart from the other.
const DOWN: u64 = 0x5bd1_e995_9e37_79b9;

/// Endless bytes of one seed, from one place on.
#[derive(Debug, Clone)]
pub struct Bytes {
    seed: u64,
    at: u64,
}

impl Bytes {
    pub fn up(seed: u64) -> Self {
        Self { seed, at: 0 }
    }

    pub fn down(seed: u64) -> Self {
        Self { seed: seed ^ DOWN, at: 0 }
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let word = mix(self.seed.wrapping_add(self.at / 8)).to_le_bytes();
            let skip = usize::try_from(self.at % 8).expect("below eight");
            let n = rest.len().min(8 - skip);
            rest[..n].copy_from_slice(&word[skip..skip + n]);
            self.at += u64::try_from(n).expect("at most eight");
            rest = &mut rest[n..];
        }
    }

    /// Errors with `InvalidData` and the place of the first wrong byte.
    pub fn check(&mut self, received: &[u8]) -> io::Result<()> {
        let start = self.at;
        let mut expected = vec![0; received.len()];
        self.fill(&mut expected);
        match expected.iter().zip(received).position(|(wanted, found)| wanted != found) {
            None => Ok(()),
            Some(place) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("wrong byte at {start} + {place}: {:#04x} for {:#04x}", received[place], expected[place]),
            )),
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): neighbouring inputs give unrelated words.
fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How fast one side sends: a frame of so many bytes, then a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// At most [`FRAME`].
    pub frame: u32,
    /// `ZERO` is as fast as it goes.
    pub every: Duration,
}

/// What a client asks of a seeded backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub seed: u64,
    /// Bytes the backend sends; `None`: until the client's end mark.
    pub down: Option<u64>,
    pub pace: Pace,
}

impl Hello {
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.seed.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.down.unwrap_or(u64::MAX).to_be_bytes());
        bytes[24..28].copy_from_slice(&self.pace.frame.to_be_bytes());
        let every = u32::try_from(self.pace.every.as_micros()).expect("a pace is below an hour");
        bytes[28..].copy_from_slice(&every.to_be_bytes());
        to.write_all(&bytes).await
    }

    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let magic = from.read_u64().await?;
        if magic != u64::from_be_bytes(MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a seeded hello: {magic:#018x}")));
        }
        let seed = from.read_u64().await?;
        let down = Some(from.read_u64().await?).filter(|down| *down != u64::MAX);
        let frame = from.read_u32().await?;
        let every = Duration::from_micros(from.read_u32().await?.into());
        Ok(Self { seed, down, pace: Pace { frame, every } })
    }
}

/// Bytes of a frame with such a payload, its length included.
pub fn on_the_wire(size: u32) -> u64 {
    4 + u64::from(size)
}

/// Size of the next frame when so many bytes are left.
pub fn frame_of(left: u64) -> u32 {
    u32::try_from(left).map_or(FRAME, |left| left.min(FRAME))
}

/// Sends one frame of the next `size` bytes. `size` 0 is the end mark.
pub async fn send_frame(to: &mut (impl AsyncWrite + Unpin), bytes: &mut Bytes, size: u32) -> io::Result<()> {
    let payload = usize::try_from(size).expect("a frame fits in memory");
    let mut frame = vec![0; 4 + payload];
    frame[..4].copy_from_slice(&size.to_be_bytes());
    bytes.fill(&mut frame[4..]);
    to.write_all(&frame).await
}

/// Receives and checks one frame; its size, 0 for the end mark. Errors as [`Bytes::check`], or `UnexpectedEof`.
pub async fn receive_frame(from: &mut (impl AsyncRead + Unpin), bytes: &mut Bytes) -> io::Result<u32> {
    let size = from.read_u32().await?;
    let payload = usize::try_from(size).expect("a frame fits in memory");
    if size > FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {size} bytes at {}", bytes.at)));
    }
    let mut frame = vec![0; payload];
    from.read_exact(&mut frame).await?;
    bytes.check(&frame)?;
    Ok(size)
}

/// After the end mark nothing but end of file may come.
pub async fn expect_end(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    match from.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a byte after the end mark")),
    }
}
