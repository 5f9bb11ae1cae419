//! Configuration files: JSON objects whose errors name the file and the field; and the entries of tables that say how
//! each field is treated.

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
    /// [`Error::Io`]; [`Error::NotJson`] if the file is not a JSON object; the error says what it is instead, if it is
    /// a common mistake.
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

    /// A field's value, if the field exists.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    /// All fields, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// An error about a field's value. `expected` says which values are accepted.
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

    /// True or false, `default` if the field is missing. `null` is false, as in Python.
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
    /// [`Error::Field`] for a field that `table` does not accept.
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

/// Whether Python counts a value as false: PEFT and transformers then treat the field as not set.
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

/// How a field is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The value is read or checked by the code that uses it.
    Read,
    /// No value changes what is computed.
    Harmless,
    /// The value may change what is computed unless Python counts it as false.
    MustBeFalse,
    /// The value may change what is computed unless it is `null`: even an empty object enables the feature.
    MustBeNull,
}

/// A field of a configuration, how it is treated, and why.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// How the field is treated.
    pub rule: Rule,
    /// The reason for the rule, as one clause.
    pub reason: &'static str,
}

impl Field {
    /// An entry of a table.
    pub const fn new(name: &'static str, rule: Rule, reason: &'static str) -> Self {
        Self { name, rule, reason }
    }
}
