//! A JSON object whose complaints name the file and the field, and tables of what each field is good for.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::recognize;

/// A configuration file: one JSON object.
#[derive(Debug, Clone)]
pub struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotJson`] if it holds no JSON object, saying what it is instead where that can be told.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|cause| Error::Io { path: path.into(), cause })?;
        let not_json = |reason: String| Error::NotJson { path: path.into(), reason };
        if let Some(what) = recognize::what_is_instead_of_json(&bytes) {
            return Err(not_json(what.into()));
        }
        let map = serde_json::from_slice(&bytes).map_err(|e| not_json(e.to_string()))?;
        Ok(Self { path: path.into(), map })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A field's value, if it is there.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    /// All fields, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// The error about a field's value. `expected` says what would be accepted.
    pub fn refuse(&self, field: &str, expected: &str) -> Error {
        let value = self.map.get(field).map_or("missing".into(), Value::to_string);
        Error::Field { path: self.path.clone(), field: field.into(), value, expected: expected.into() }
    }

    /// A whole number from 1 to 2³¹.
    ///
    /// # Errors
    /// [`Error::Field`].
    pub fn size(&self, field: &str) -> Result<usize> {
        let value = self.get(field).and_then(Value::as_u64).filter(|v| (1..=1 << 31).contains(v));
        value
            .map(|v| v as usize)
            .ok_or_else(|| self.refuse(field, "expected a whole number of at least 1 and at most 2147483648"))
    }

    /// True or false, `default` where the field is missing. `null` is false, as it is to Python.
    ///
    /// # Errors
    /// [`Error::Field`] for anything else, and for `null` where the default is true.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Null) if !default => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(field, "expected true or false")),
        }
    }

    /// Checks every field against a table.
    ///
    /// # Errors
    /// [`Error::Field`] for a field that `table` does not let through.
    pub fn check(&self, table: &[Field]) -> Result<()> {
        for (name, value) in &self.map {
            let field = table.iter().find(|field| field.name == name);
            let accepted = match field.map(|field| field.rule) {
                Some(Rule::Read | Rule::Harmless) => true,
                Some(Rule::MustBeNull) => value.is_null(),
                Some(Rule::MustBeFalse) | None => is_false(value),
            };
            if !accepted {
                let reason = field.map_or(String::new(), |field| format!(": {}", field.reason));
                return Err(self.refuse(name, &format!("which is not supported{reason}")));
            }
        }
        Ok(())
    }
}

/// Whether Python counts a value as false, which is how PEFT and transformers ask whether a field is set.
pub fn is_false(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
    }
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Its value is read or checked where it matters.
    Read,
    /// No value changes what is computed.
    Harmless,
    /// It may change what is computed unless Python counts it as false.
    MustBeFalse,
    /// It may change what is computed unless it is `null`: even an empty object turns it on.
    MustBeNull,
}

/// A field of a configuration, what becomes of it, and why.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub rule: Rule,
    /// Why that is right: one clause.
    pub reason: &'static str,
}

impl Field {
    /// A line of a table.
    pub const fn new(name: &'static str, rule: Rule, reason: &'static str) -> Self {
        Self { name, rule, reason }
    }
}
