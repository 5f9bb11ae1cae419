//! Recognises files of the wrong kind, such as the results of failed downloads, by their first bytes.

/// If `bytes` are a file of a common wrong kind: what it is, and what to do about it.
pub(crate) fn what_is(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(512)];
    if start.starts_with(b"version https://git-lfs") {
        return Some("it is a Git LFS pointer, not the file that it stands for: fetch the file with `git lfs pull`");
    }
    let text = String::from_utf8_lossy(start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return Some("it is an HTML page, not the file itself: download the raw file");
    }
    if text.starts_with("<?xml") {
        return Some("it is an XML document, perhaps a server's error message");
    }
    if start.starts_with(b"PK\x03\x04") {
        return Some("it is a ZIP archive, as PyTorch's .bin and .pt files are: save it as safetensors");
    }
    if matches!(start, [0x80, 2..=5, ..]) {
        return Some("it is a Python pickle: save it as safetensors");
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        return Some("it is compressed with gzip: unpack it");
    }
    None
}

/// Says why `bytes` are not JSON, if their beginning shows it.
pub(crate) fn what_is_instead_of_json(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("it is empty"),
        [0xEF, 0xBB, 0xBF, ..] => {
            Some("it starts with a byte order mark (BOM), which JSON must not have: save it as UTF-8 without one")
        }
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
            Some("it is UTF-16, as its byte order mark (BOM) shows: save it as UTF-8")
        }
        _ => what_is(bytes),
    }
}
