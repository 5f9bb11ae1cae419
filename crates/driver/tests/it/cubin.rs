//! Cubins and fatbins with the records that a driver reads, and no machine code: the emulator runs the kernel's source.

/// A kernel as a cubin describes it.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) registers: u32,
    pub(crate) local_bytes: u32,
    pub(crate) static_shared_bytes: u32,
    /// The largest block, if the kernel says one.
    pub(crate) max_threads: Option<u32>,
    /// Offset and bytes of each parameter.
    pub(crate) parameters: &'static [(u32, u32)],
}

/// `y = act(y + scale·added)`, as its source says it.
pub(crate) const POINTWISE: Kernel = Kernel {
    name: "lora_pointwise_f32",
    registers: 32,
    local_bytes: 0,
    static_shared_bytes: 0,
    max_threads: Some(128),
    parameters: &[(0, 48)],
};

const HEADER_BYTES: usize = 64;
const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const NOBITS: u32 = 8;
/// The type of `.nv.info` sections.
const CUDA_INFO: u32 = 0x7000_0000;

struct Section {
    name: String,
    kind: u32,
    bytes: Vec<u8>,
    /// Bytes of a section that stores none.
    size: usize,
    link: u32,
    info: u32,
}

fn section(name: impl Into<String>, kind: u32, bytes: Vec<u8>) -> Section {
    Section { name: name.into(), kind, size: bytes.len(), bytes, link: 0, info: 0 }
}

/// A record of an `.nv.info` section, whose value is some words.
fn record(attribute: u8, words: &[u32]) -> Vec<u8> {
    let length = 4 * words.len() as u16;
    let mut record = vec![4, attribute, length as u8, (length >> 8) as u8];
    words.iter().for_each(|word| record.extend(word.to_le_bytes()));
    record
}

/// Adds a text with its final zero, and returns its place.
fn add(texts: &mut Vec<u8>, text: &str) -> u32 {
    let at = texts.len() as u32;
    texts.extend(text.as_bytes());
    texts.push(0);
    at
}

/// Bytes in words, so that they are aligned.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

/// The bytes of a cubin.
pub(crate) fn bytes_of_cubin((major, minor): (u32, u32), kernels: &[Kernel]) -> Vec<u8> {
    let (mut names, mut symbols, mut common) = (vec![0], vec![0; 24], vec![]);
    let mut of_kernels = vec![];
    for (at, kernel) in kernels.iter().enumerate() {
        let symbol = 1 + at as u32;
        let text_section = 5 + 3 * at as u16;
        // A symbol: its name, that it is a global function, its section, its address and its size.
        symbols.extend(add(&mut names, kernel.name).to_le_bytes());
        symbols.extend([0x12, 0]);
        symbols.extend(text_section.to_le_bytes());
        symbols.extend([0; 16]);
        common.extend(record(0x2f, &[symbol, kernel.registers]));
        common.extend(record(0x11, &[symbol, kernel.local_bytes]));
        // A record that the driver does not read, of a format without words.
        let mut info = vec![3, 0x1b, 0xff, 0];
        if let Some(threads) = kernel.max_threads {
            info.extend(record(0x05, &[threads, 1, 1]));
        }
        for (ordinal, (offset, bytes)) in kernel.parameters.iter().enumerate() {
            info.extend(record(0x17, &[0, ordinal as u32 | offset << 16, bytes << 18 | 0x1f000]));
        }
        of_kernels.push(section(format!(".text.{}", kernel.name), PROGBITS, vec![0; 16]));
        of_kernels.push(section(format!(".nv.info.{}", kernel.name), CUDA_INFO, info));
        let mut shared = section(format!(".nv.shared.{}", kernel.name), NOBITS, vec![]);
        shared.size = kernel.static_shared_bytes as usize;
        of_kernels.push(shared);
    }
    let mut sections = vec![section("", 0, vec![]), section(".shstrtab", STRTAB, vec![])];
    sections.push(section(".strtab", STRTAB, names));
    sections.push(Section { link: 2, info: 1, ..section(".symtab", SYMTAB, symbols) });
    sections.push(Section { link: 3, ..section(".nv.info", CUDA_INFO, common) });
    sections.extend(of_kernels);
    elf(8, (10 * major + minor) << 8, sections)
}

/// An ELF file of these sections, the second of which gets their names.
fn elf(abi: u8, flags: u32, mut sections: Vec<Section>) -> Vec<u8> {
    let mut names = vec![];
    let places: Vec<u32> = sections.iter().map(|section| add(&mut names, &section.name)).collect();
    sections[1].size = names.len();
    sections[1].bytes = names;
    let (mut contents, mut headers) = (vec![], vec![]);
    for (section, name) in sections.iter().zip(places) {
        contents.resize(contents.len().next_multiple_of(8), 0);
        let offset = (HEADER_BYTES + contents.len()) as u64;
        contents.extend(&section.bytes);
        let entry = if section.kind == SYMTAB { 24 } else { 0 };
        headers.extend([name, section.kind].iter().flat_map(|word| word.to_le_bytes()));
        headers.extend([0, 0, offset, section.size as u64].iter().flat_map(|word| word.to_le_bytes()));
        headers.extend([section.link, section.info].iter().flat_map(|word| word.to_le_bytes()));
        headers.extend([8u64, entry].iter().flat_map(|word| word.to_le_bytes()));
    }
    contents.resize(contents.len().next_multiple_of(8), 0);
    // 64 bits, little endian, of CUDA.
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0x41, abi, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2u16, 190].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([0, 0, (HEADER_BYTES + contents.len()) as u64].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(flags.to_le_bytes());
    let halves = [HEADER_BYTES as u16, 0, 0, 64, sections.len() as u16, 1];
    file.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    file.extend(contents);
    file.extend(headers);
    file
}

/// A cubin, aligned as the driver wants it.
pub(crate) fn cubin(capability: (u32, u32), kernels: &[Kernel]) -> Vec<u64> {
    aligned(&bytes_of_cubin(capability, kernels))
}

/// An image in a fatbin.
pub(crate) enum Part {
    Cubin((u32, u32), Vec<u8>),
    Ptx((u32, u32)),
}

/// A fatbin of images that are not compressed.
pub(crate) fn fatbin(parts: &[Part]) -> Vec<u64> {
    let mut contents = vec![];
    for part in parts {
        let (kind, (major, minor), image) = match part {
            Part::Cubin(capability, image) => (2u16, capability, image.clone()),
            Part::Ptx(capability) => (1, capability, b".version 9.0\0".to_vec()),
        };
        let padded = image.len().next_multiple_of(8);
        let mut header = vec![0; 64];
        header[0..2].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&64u32.to_le_bytes());
        header[8..16].copy_from_slice(&(padded as u64).to_le_bytes());
        header[28..32].copy_from_slice(&(10 * major + minor).to_le_bytes());
        contents.extend(header);
        contents.extend(&image);
        contents.resize(contents.len() + padded - image.len(), 0);
    }
    let mut file = 0xba55_ed50_u32.to_le_bytes().to_vec();
    file.extend([1u16, 16].iter().flat_map(|half| half.to_le_bytes()));
    file.extend((contents.len() as u64).to_le_bytes());
    file.extend(contents);
    aligned(&file)
}
