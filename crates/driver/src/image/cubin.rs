//! Cubins: ELF files with the machine code of kernels, and what the driver needs to know about each.
//!
//! Sections `.nv.info` hold records: a format, an attribute and a value. The attributes' numbers and layouts were found in
//! files of nvcc 13.0 for all targets of this project and agree with `cuobjdump -elf` and `--dump-resource-usage`.

use std::collections::BTreeMap;

use object::elf::{FileHeader64, SHT_NOBITS};
use object::read::elf::{ElfFile64, FileHeader as _, SectionHeader as _};
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::image::{Image, KernelImage};
use crate::rules::{Outcome, Rule};

/// The first bytes of an ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";
/// Bytes of the header of a 64-bit ELF file.
const HEADER_BYTES: usize = 64;
/// The version of the ABI from which on the second byte of the flags is the architecture; before, it is the first.
const SECOND_BYTE: u8 = 8;
/// The largest block of a kernel that says nothing about it.
const MAX_THREADS: u32 = 1024;

/// Attributes of `.nv.info` sections.
mod attribute {
    pub(super) const MAX_THREADS: u8 = 0x05;
    pub(super) const REQUIRED_THREADS: u8 = 0x10;
    pub(super) const FRAME_BYTES: u8 = 0x11;
    pub(super) const PARAMETER: u8 = 0x17;
    pub(super) const REGISTERS: u8 = 0x2f;
}

/// The bytes of a cubin, whose end is that of its last table or section.
///
/// # Safety
/// A whole cubin must lie there, aligned to 8 bytes.
pub(super) unsafe fn whole<'a>(address: *const u8) -> Outcome<&'a [u8]> {
    let endian = LittleEndian;
    // SAFETY: the caller's promise; an ELF file begins with its header.
    let header = unsafe { std::slice::from_raw_parts(address, HEADER_BYTES) };
    let Ok(header) = FileHeader64::<LittleEndian>::parse(header) else {
        return Rule::Image.broken("It begins like a cubin and has no header of one.");
    };
    let table = |offset: u64, size: u16, count: u16| offset as usize + usize::from(size) * usize::from(count);
    let sections = table(header.e_shoff(endian), header.e_shentsize(endian), header.e_shnum(endian));
    let segments = table(header.e_phoff(endian), header.e_phentsize(endian), header.e_phnum(endian));
    // SAFETY: the tables lie in the file, by the caller's promise.
    let tables = unsafe { std::slice::from_raw_parts(address, sections.max(segments)) };
    let ends = header.section_headers(endian, tables).map(|headers| {
        let stored = headers.iter().filter(|section| section.sh_type(endian) != SHT_NOBITS);
        stored.map(|section| (section.sh_offset(endian) + section.sh_size(endian)) as usize).max().unwrap_or(0)
    });
    let Ok(end) = ends else { return Rule::Image.broken("A cubin's table of sections cannot be read.") };
    // SAFETY: the sections lie in the file, by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(address, end.max(tables.len())) })
}

/// A record: its attribute and its value.
fn records(mut section: &[u8]) -> Vec<(u8, &[u8])> {
    let mut records = vec![];
    while let [format, attribute, low, high, rest @ ..] = section {
        // Format 4 is a value of so many bytes; in all others, the two bytes are the value.
        let length = if *format == 4 { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
        let Some((value, rest)) = rest.split_at_checked(length) else { break };
        records.push((*attribute, value));
        section = rest;
    }
    records
}

fn words(value: &[u8]) -> Vec<u32> {
    value.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
}

/// Reads the kernels of a cubin.
pub(super) fn parse(bytes: &[u8]) -> Outcome<Image> {
    read(bytes).map_or_else(|error| Rule::Image.broken(format!("A cubin cannot be read: {error}.")), Ok)
}

fn read(bytes: &[u8]) -> Result<Image, object::Error> {
    let endian = LittleEndian;
    let file = ElfFile64::<LittleEndian>::parse(bytes)?;
    let header = file.elf_header();
    let shift = if header.e_ident().abi_version >= SECOND_BYTE { 8 } else { 0 };
    let architecture = header.e_flags(endian) >> shift & 0xff;
    let mut kernels: BTreeMap<String, KernelImage> = BTreeMap::new();
    for section in file.sections() {
        let Some(kernel) = section.name()?.strip_prefix(".nv.info.") else { continue };
        let mut image = KernelImage { max_threads: MAX_THREADS, ..KernelImage::default() };
        for (attribute, value) in records(section.data()?) {
            let value = words(value);
            match (attribute, value.as_slice()) {
                (attribute::MAX_THREADS | attribute::REQUIRED_THREADS, [x, y, z]) => image.max_threads = x * y * z,
                // Index; number (16 bits) and offset (16 bits); sizes of several fields, the size last.
                (attribute::PARAMETER, [_, place, sizes]) => {
                    image.parameters.push(((place >> 16) as usize, (sizes >> 18) as usize));
                }
                _ => {}
            }
        }
        image.parameters.sort_unstable();
        image.static_shared_bytes =
            file.section_by_name(&format!(".nv.shared.{kernel}")).map_or(0, |section| section.size() as u32);
        kernels.insert(kernel.to_owned(), image);
    }
    // The registers and the frames of all kernels are in one section, by the numbers of their symbols.
    let common = file.section_by_name(".nv.info").map(|section| section.data()).transpose()?.unwrap_or_default();
    for (attribute, value) in records(common) {
        let [symbol, number] = words(value)[..] else { continue };
        let symbol = file.symbol_by_index(object::SymbolIndex(symbol as usize))?;
        let Some(kernel) = kernels.get_mut(symbol.name()?) else { continue };
        match attribute {
            attribute::REGISTERS => kernel.registers = number,
            attribute::FRAME_BYTES => kernel.local_bytes = number,
            _ => {}
        }
    }
    Ok(Image { capability: (architecture / 10, architecture % 10), kernels })
}
