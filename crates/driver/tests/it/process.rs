//! A process for each test.

use std::env;
use std::process::Command;

/// Says to a process which test it was started for.
const CHOSEN: &str = "FUSED_LORA_DRIVER_TEST";

/// Runs `test` in a new process of this program, whose driver has these options. `name` is the test's function with its
/// module; `case` tells apart the processes of one test.
pub(crate) fn run(name: &str, case: &str, options: &str, test: impl FnOnce()) -> Result<(), String> {
    let name = name.split_once("::").map_or(name, |(_, name)| name);
    let chosen = format!("{name} {case}");
    if env::var(CHOSEN).is_ok_and(|of_this| of_this == chosen) {
        test();
        return Ok(());
    }
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .args([name, "--exact", "--nocapture"])
        .env(CHOSEN, &chosen)
        .env("RUST_BACKTRACE", "0")
        .env("FUSED_LORA_DRIVER", format!("violations=return {options}"))
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // A name that is no test's would pass without this.
    if output.status.success() && text.contains("1 passed") { Ok(()) } else { Err(format!("{chosen}:\n{text}")) }
}

/// Whether this process was started for a case of this test, which then runs in it.
pub(crate) fn case_of(name: &str) -> Option<String> {
    let name = name.split_once("::").map_or(name, |(_, name)| name);
    env::var(CHOSEN).ok()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned)
}

/// Tests with the options of their driver, each in a process of its own.
macro_rules! tests {
    ($($(#[$doc:meta])* fn $name:ident($options:literal) $body:block)*) => {
        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                crate::process::run(name, "", $options, || $body).unwrap();
            }
        )*
    };
}

pub(crate) use tests;
