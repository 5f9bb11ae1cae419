//! The fatbin container: machine code and PTX for several compute capabilities in one file.
//!
//! The format is not documented. What is read here was found in files of nvcc 13.0 and agrees with `cuobjdump`.

use std::io::Read;

use crate::image::Code;
use crate::rules::{Outcome, Rule};

/// The first bytes of a fatbin.
pub(super) const MAGIC: &[u8] = &0xba55_ed50_u32.to_le_bytes();
const HEADER_BYTES: usize = 16;
/// Bytes of the shortest header of an entry: all fields that are read here.
const ENTRY_BYTES: usize = 64;
/// The flag of an entry that is compressed with zstd.
const ZSTD: u64 = 0x8000;
/// The flag of an entry that is compressed with LZ4, as nvcc 12 does.
const LZ4: u64 = 0x2000;

/// One image of a fatbin.
pub(super) struct Entry<'a> {
    /// A cubin; otherwise PTX.
    pub(super) is_machine_code: bool,
    pub(super) capability: (u32, u32),
    flags: u64,
    stored: &'a [u8],
    /// Bytes of the decompressed image.
    bytes: usize,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Outcome<u64> {
    let Some(found) = bytes.get(at..at + N) else { return Rule::Image.broken("A fatbin ends too early.") };
    let mut word = [0; 8];
    word[..N].copy_from_slice(found);
    Ok(u64::from_le_bytes(word))
}

/// The bytes of a fatbin, header included, whose length is in its header.
///
/// # Safety
/// A whole fatbin must lie there.
pub(super) unsafe fn whole<'a>(address: *const u8) -> &'a [u8] {
    // SAFETY: the caller's promise: the header says how long the rest is.
    unsafe {
        let header = std::slice::from_raw_parts(address, HEADER_BYTES);
        let rest = number::<8>(header, 8).unwrap_or_default() as usize;
        std::slice::from_raw_parts(address, HEADER_BYTES + rest)
    }
}

/// All images of a fatbin.
pub(super) fn entries(fatbin: &[u8]) -> Outcome<Vec<Entry<'_>>> {
    let mut at = number::<2>(fatbin, 6)? as usize;
    let mut entries = vec![];
    while at < fatbin.len() {
        let entry = &fatbin[at..];
        let kind = number::<2>(entry, 0)?;
        let header = number::<4>(entry, 4)? as usize;
        let padded = number::<8>(entry, 8)? as usize;
        let compressed = number::<4>(entry, 16)? as usize;
        let architecture = number::<4>(entry, 28)? as u32;
        let flags = number::<8>(entry, 40)?;
        let stored = if flags & (ZSTD | LZ4) == 0 { padded } else { compressed };
        let end = header.checked_add(stored);
        let stored = end.filter(|_| header >= ENTRY_BYTES).and_then(|end| entry.get(header..end));
        let (Some(stored), Some(next)) = (stored, at.checked_add(header).and_then(|at| at.checked_add(padded))) else {
            return Rule::Image.broken("An entry of a fatbin ends behind the fatbin, or before its own header.");
        };
        entries.push(Entry {
            is_machine_code: kind == 2,
            capability: (architecture / 10, architecture % 10),
            flags,
            stored,
            bytes: number::<8>(entry, 56)? as usize,
        });
        at = next;
    }
    Ok(entries)
}

impl Entry<'_> {
    /// The image, decompressed.
    pub(super) fn code(&self) -> Outcome<Code<'_>> {
        if self.flags & LZ4 != 0 {
            return Rule::Image.broken("This driver does not read fatbins that are compressed with LZ4.");
        }
        if self.flags & ZSTD == 0 {
            return Ok(self.stored.into());
        }
        let mut code = vec![];
        let read = ruzstd::decoding::StreamingDecoder::new(self.stored)
            .map_err(|error| error.to_string())
            .and_then(|mut decoder| decoder.read_to_end(&mut code).map_err(|error| error.to_string()));
        match read {
            Ok(bytes) if bytes == self.bytes => Ok(code.into()),
            Ok(bytes) => Rule::Image.broken(format!("An entry has {bytes} bytes, not {}.", self.bytes)),
            Err(error) => Rule::Image.broken(format!("An entry cannot be decompressed: {error}.")),
        }
    }
}
