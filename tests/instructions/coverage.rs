//! Checks that a kernel in kernels/test calls every function of kernels/gpu.

use std::fs;
use std::path::Path;

use crate::common::rig::on_gpu;

fn texts(folder: &str, extensions: &[&str]) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(folder);
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Whether `name` occurs in the text as a whole word, followed by one of the characters `next`.
fn occurs(text: &str, name: &str, next: &[char]) -> bool {
    text.match_indices(name).any(|(at, _)| !text[..at].ends_with(is_word) && text[at + name.len()..].starts_with(next))
}

#[test]
fn every_function_is_called_by_a_test_kernel() {
    // A GPU host does not have the sources.
    if on_gpu() {
        return;
    }
    let headers = texts("gpu", &["h"]);
    let calls = texts("test", &["cu", "h"]);
    let mut functions: Vec<&str> = headers
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("GPU_DEVICE "))
        .map(|declaration| declaration.split('(').next().unwrap_or_default())
        .map(|start| start.rsplit(|c| !is_word(c)).next().unwrap_or_default())
        .collect();
    functions.sort_unstable();
    functions.dedup();
    assert!(functions.len() > 80, "this many functions were found: {}", functions.len());
    let is_called = |name: &str| {
        // A constructor is followed by the name of a variable.
        let next: &[char] = if name.starts_with(char::is_uppercase) { &[' '] } else { &['(', '<'] };
        occurs(&calls, name, next)
    };
    functions.retain(|name| !is_called(name));
    assert!(functions.is_empty(), "kernels/test calls none of {functions:?}");
}
