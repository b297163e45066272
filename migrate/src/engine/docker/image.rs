//! What images are called, and what Docker answers when it has loaded one.
//!
//! Names come from a user's command line or from a peer and end up in a request's path: what does not look like a
//! name or an id is not asked for.

use serde_json::Value;

use crate::engine::image_store::is_well_formed;

/// The name by which an image can be taken along: with its tag, because Docker exports *every* tag of a name
/// without one. Ids have no such name, and neither has a name with a digest, which only a registry can resolve.
pub(super) fn portable_name(image_name: &str) -> Option<String> {
    if !is_well_formed(image_name) || image_name.contains('@') || looks_like_id(image_name) {
        return None;
    }
    let last = image_name.rsplit('/').next().unwrap_or(image_name);
    let tag = if last.contains(':') { "" } else { ":latest" };
    Some(format!("{image_name}{tag}"))
}

/// Reads the JSON lines that `POST /images/load` answers; the status is 200 even if it failed half-way.
pub(super) fn check_loaded(answer: &[u8]) -> Result<(), String> {
    for line in serde_json::Deserializer::from_slice(answer).into_iter::<Value>() {
        let line = line.map_err(|error| format!("the answer is not JSON: {error}"))?;
        if let Some(reason) = line["error"].as_str() {
            return Err(format!("the image could not be loaded: {reason}"));
        }
    }
    Ok(())
}

/// `sha256:…`, or the hexadecimal short form that users type.
fn looks_like_id(name: &str) -> bool {
    name.starts_with("sha256:") || (name.len() >= 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_is_exported_with_the_tag_it_means() {
        assert_eq!(portable_name("redis").as_deref(), Some("redis:latest"));
        assert_eq!(
            portable_name("registry:5000/a/redis").as_deref(),
            Some("registry:5000/a/redis:latest")
        );
        assert_eq!(
            portable_name("registry:5000/redis:8").as_deref(),
            Some("registry:5000/redis:8")
        );
    }

    #[test]
    fn ids_and_digests_are_no_portable_names() {
        for name in ["", "sha256:16031d20", "16031d20b4ec", "redis@sha256:16031d20"] {
            assert_eq!(portable_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_failed_load_is_found_behind_progress() {
        let answer = b"{\"stream\":\"Loading layer\"}\r\n{\"errorDetail\":{\"message\":\"x\"},\"error\":\"unexpected EOF\"}\r\n";
        assert_eq!(
            check_loaded(answer),
            Err("the image could not be loaded: unexpected EOF".to_owned())
        );
        assert_eq!(
            check_loaded(b"{\"stream\":\"Loaded image: loop:1\\n\"}\r\n"),
            Ok(())
        );
    }
}
