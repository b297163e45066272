//! Where the lens lies, the library through which CRIU does not see what a move does without (`lens`), and what it is told.

use std::path::PathBuf;

/// Where it lies beside the directory of our programs.
pub const NAME: &str = "lib/godwit/libgodwit_lens.so";

/// Has the dynamic loader of every program that runC starts load it.
pub const LOADER_VARIABLE: &str = "LD_PRELOAD";

/// Tells it not to ask for the connections that are tracked in the container's network, because an engine wires that anew.
pub const UNTRACKED_VARIABLE: &str = "GODWIT_UNTRACKED";

/// The lens that was installed with this program. Without it a dump is as good, and takes longer.
pub fn installed() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    // The loader takes a name with a colon or a space for several.
    let place = program.parent()?.parent()?.join(NAME).canonicalize().ok()?;
    place
        .to_str()
        .is_some_and(|path| !path.contains([':', ' ']))
        .then_some(place)
}
