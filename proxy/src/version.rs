//! Which build this is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What tells builds of one version apart: what the packager set (`PROXYD_BUILD`), else the id that the linker gave this
/// program, the same in a stripped copy (`readelf -n`).
pub fn build() -> &'static str {
    static BUILD: OnceLock<String> = OnceLock::new();
    BUILD.get_or_init(|| match option_env!("PROXYD_BUILD") {
        Some(build) => build.into(),
        None => own_build_id().ok().flatten().unwrap_or_else(|| "unknown".into()),
    })
}

fn own_build_id() -> io::Result<Option<String>> {
    let file = File::open("/proc/self/exe")?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    // elf(5), 64 bit: e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let (at, size, count) = (word(&header, 32, 8), word(&header, 54, 2), word(&header, 56, 2));
    for index in 0..count.min(MOST) {
        let mut program = [0; 56];
        file.read_exact_at(&mut program, at + index * size)?;
        if word(&program, 0, 4) == PT_NOTE {
            // p_offset at 8, p_filesz at 32.
            let mut notes = vec![0; usize::try_from(word(&program, 32, 8).min(MOST)).unwrap_or(0)];
            file.read_exact_at(&mut notes, word(&program, 8, 8))?;
            if let Some(id) = build_id(&notes) {
                return Ok(Some(id));
            }
        }
    }
    Ok(None)
}

/// Of a run of notes: each is three words (sizes of name and content, type), the name and the content, padded to four bytes.
fn build_id(mut notes: &[u8]) -> Option<String> {
    loop {
        let head = notes.get(..12)?;
        let of = |at| usize::try_from(word(head, at, 4)).ok();
        let (name, content) = (of(0)?, of(4)?);
        let begins = 12 + name.next_multiple_of(4);
        let found = notes.get(begins..begins.checked_add(content)?)?;
        if word(head, 8, 4) == NT_GNU_BUILD_ID && notes.get(12..12 + name) == Some(b"GNU\0") {
            return Some(found.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(begins + content.next_multiple_of(4)..)?;
    }
}

/// A number of up to eight bytes, in the order of this machine.
fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut number = [0; 8];
    let place = if cfg!(target_endian = "little") { 0 } else { 8 - size };
    number[place..place + size].copy_from_slice(&bytes[at..at + size]);
    u64::from_ne_bytes(number)
}

/// elf(5).
const PT_NOTE: u64 = 4;
const NT_GNU_BUILD_ID: u64 = 3;
/// Of program headers, and of bytes of notes: ours has a dozen, and some hundred.
const MOST: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let sizes = [name.len(), content.len()].map(|size| u32::try_from(size).unwrap().to_ne_bytes());
        let mut note = [sizes[0], sizes[1], kind.to_ne_bytes()].concat();
        for part in [name, content] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_id_is_found_among_other_notes() {
        let other = note(b"GNU\0", 1, &[9; 16]);
        let foreign = note(b"Go\0", 3, &[7; 5]);
        let ours = note(b"GNU\0", 3, &[0xab, 0x01, 0xff]);
        assert_eq!(build_id(&[&other[..], &foreign, &ours].concat()), Some("ab01ff".into()));
        assert_eq!(build_id(&[&other[..], &foreign].concat()), None);
        assert_eq!(build_id(&ours[..ours.len() - 2]), None, "its last byte is missing");
    }
}
