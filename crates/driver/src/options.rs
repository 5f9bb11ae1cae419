//! What a process says about the device that it wants to see, in `$FUSED_LORA_DRIVER` or by `fused_lora_driver_set`.
//!
//! The text is a list of words, each `name=value`, separated by white space:
//!
//! | word | meaning | without it |
//! |---|---|---|
//! | `capability=9.0` | the devices' compute capability | 9.0 |
//! | `multiprocessors=8` | SMs of a device | 8 |
//! | `devices=1` | number of devices | 1 |
//! | `memory=BYTES` | memory of a device; an allocation beyond it fails | 2 GiB |
//! | `seed=1` | seed of the order in which streams, blocks and threads take turns | 1 |
//! | `violations=return` | a call that breaks a rule returns an error; otherwise the process ends | `abort` |
//! | `fail=CALL@N:CODE` | the N-th call of this function returns this error; without `@N` every call | |
//! | `skip=CALL@N` | the call returns success and does nothing | |
//! | `set=CALL@N.ARGUMENT:VALUE` | the call gets another value | |
//! | `add=CALL@N.ARGUMENT:VALUE` | the call gets a value that is greater by this number | |
//! | `earlier=CALL@N.ARGUMENT:K` | the call gets the value of K different values before | |
//!
//! The last five, of which there may be many, are how tests plant bugs in a caller without compiling it again.

use crate::alter::Alteration;

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) capability: (u32, u32),
    pub(crate) multiprocessors: u32,
    pub(crate) devices: usize,
    pub(crate) memory: usize,
    pub(crate) seed: u64,
    /// Whether a call that breaks a rule ends the process.
    pub(crate) aborts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { capability: (9, 0), multiprocessors: 8, devices: 1, memory: 2 << 30, seed: 1, aborts: true }
    }
}

impl Options {
    /// Changes the options that a text names, and returns its alterations of calls.
    ///
    /// # Errors
    /// The word that is wrong; then nothing has changed.
    pub(crate) fn set(&mut self, text: &str) -> Result<Vec<Alteration>, String> {
        let mut changed = self.clone();
        let alterations = changed.set_words(text)?;
        *self = changed;
        Ok(alterations)
    }

    fn set_words(&mut self, text: &str) -> Result<Vec<Alteration>, String> {
        let mut alterations = vec![];
        for word in text.split_whitespace() {
            let wrong = || format!("'{word}' is no option of the stand-in driver");
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u64>().map_err(|_| wrong());
            match name {
                "capability" => {
                    let (major, minor) = value.split_once('.').ok_or_else(wrong)?;
                    self.capability = (major.parse().map_err(|_| wrong())?, minor.parse().map_err(|_| wrong())?);
                }
                "multiprocessors" => self.multiprocessors = number()? as u32,
                "devices" => self.devices = number()? as usize,
                "memory" => self.memory = number()? as usize,
                "seed" => self.seed = number()?,
                "violations" if value == "return" => self.aborts = false,
                "violations" if value == "abort" => self.aborts = true,
                _ => alterations.push(Alteration::parse(name, value).ok_or_else(wrong)?),
            }
        }
        Ok(alterations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_option_is_named() {
        let mut options = Options::default();
        let alterations = options.set("capability=8.6 memory=4096 violations=return fail=cuMemAlloc_v2@2:2").unwrap();
        assert_eq!((options.capability, options.memory, options.aborts), ((8, 6), 4096, false));
        assert_eq!(alterations.len(), 1);
        for wrong in ["memory", "memory=many", "colour=red", "fail=cuMemAlloc_v2", "set=cuInit:1", "capability=9"] {
            assert!(options.set(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
