//! Functions for all pictures.

use std::path::Path;

use anyhow::Result;
use fused_lora_gpt2::write_atomically;

/// Writes a picture; on an error nothing is written.
pub(crate) fn write(path: &Path, svg: &str) -> Result<()> {
    Ok(write_atomically(path, |file| file.write_all(svg.as_bytes()))?)
}

/// The last part of a model's path, cut to 40 characters.
pub(crate) fn name_of(model: &str) -> String {
    let name = Path::new(model).file_name().map_or(model.into(), |name| name.to_string_lossy());
    match name.chars().count() {
        0..=40 => name.into_owned(),
        _ => name.chars().take(39).chain(['…']).collect(),
    }
}
