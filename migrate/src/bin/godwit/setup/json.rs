//! Members of a JSON text, added and removed in the text itself: what is beside them keeps its order and its spacing.
//!
//! It finds its way only in texts that are JSON, which [`check`] tells first; and it refuses objects that name the
//! wanted member twice, because programs disagree on which one counts.

use std::ops::Range;

use serde_json::Value;

/// Where a member stands: its whole text with the blanks before it, and its value.
struct Member {
    whole: Range<usize>,
    value: Range<usize>,
}

/// Whether `text` is a JSON object.
pub(super) fn check(text: &str) -> Result<(), String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(_)) => Ok(()),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

/// The value at `path`, if there is one.
pub(super) fn get(text: &str, path: &[&str]) -> Result<Option<Value>, String> {
    let parse = |range: Range<usize>| serde_json::from_str(&text[range]).map_err(|error| error.to_string());
    find(text, path)?.map(|member| parse(member.value)).transpose()
}

/// `text` with `value` at `path`, as the first of its object, which must be there and not have it yet.
pub(super) fn insert(text: &str, path: &[&str], value: &str) -> Result<String, String> {
    let Some((name, parents)) = path.split_last() else {
        return Err("no member is named".to_owned());
    };
    let object = match parents {
        [] => blanks(text, 0)..text.len(),
        _ => find(text, parents)?.ok_or("the object is not there")?.value,
    };
    if !text[object.clone()].starts_with('{') {
        return Err(format!("{} is no object", parents.join(".")));
    }
    let inside = object.start + 1;
    let is_empty = text[blanks(text, inside)..].starts_with('}');
    let (indent, comma) = ("    ".repeat(path.len()), if is_empty { "" } else { "," });
    Ok(format!(
        "{}\n{indent}{}: {value}{comma}{}",
        &text[..inside],
        Value::from(*name),
        &text[inside..]
    ))
}

/// `text` without the member at `path`, which undoes [`insert`] to the byte.
pub(super) fn remove(text: &str, path: &[&str]) -> Result<String, String> {
    let Some(Member { whole, .. }) = find(text, path)? else {
        return Ok(text.to_owned());
    };
    let behind = blanks(text, whole.end);
    let cut = if text[behind..].starts_with(',') {
        whole.start..behind + 1
    } else if text[..whole.start].ends_with(',') {
        whole.start - 1..whole.end
    } else {
        whole
    };
    Ok(format!("{}{}", &text[..cut.start], &text[cut.end..]))
}

fn find(text: &str, path: &[&str]) -> Result<Option<Member>, String> {
    check(text)?;
    let mut at = blanks(text, 0);
    let mut found = None;
    for (depth, name) in path.iter().enumerate() {
        if !text[at..].starts_with('{') {
            return Err(format!("{} is no object", path[..depth].join(".")));
        }
        let mut named = members(text, at)?.into_iter().filter(|(key, _)| key == name);
        let Some((_, member)) = named.next() else {
            return Ok(None);
        };
        if named.next().is_some() {
            return Err(format!("{} is there twice", path[..=depth].join(".")));
        }
        at = member.value.start;
        found = Some(member);
    }
    Ok(found)
}

/// The members of the object that begins at `at`.
fn members(text: &str, at: usize) -> Result<Vec<(String, Member)>, String> {
    let mut members = Vec::new();
    let mut start = at + 1;
    loop {
        let name = blanks(text, start);
        if text[name..].starts_with('}') {
            return Ok(members);
        }
        let name_end = name + length_of_value(text, name)?;
        // Past the colon.
        let value = blanks(text, blanks(text, name_end) + 1);
        let end = value + length_of_value(text, value)?;
        let key = serde_json::from_str(&text[name..name_end]).map_err(|error| error.to_string())?;
        members.push((
            key,
            Member {
                whole: start..end,
                value: value..end,
            },
        ));
        start = match text[blanks(text, end)..].starts_with(',') {
            true => blanks(text, end) + 1,
            false => end,
        };
    }
}

/// The next place that is no blank.
fn blanks(text: &str, from: usize) -> usize {
    text.len() - text[from..].trim_start_matches([' ', '\t', '\r', '\n']).len()
}

fn length_of_value(text: &str, at: usize) -> Result<usize, String> {
    let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Ok(values.byte_offset()),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("it ends in the middle".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNTIME: &str = r#"{"runtimeType": "x"}"#;

    #[test]
    fn what_was_inserted_is_removed_to_the_byte() {
        for text in [
            "{}",
            "{ }\n",
            "\n{\n}\n",
            r#"{"runtimes":{}}"#,
            "{\n\t\"log-opts\": {\"a\": \"}\"},\n\t\"runtimes\": {\n\t\t\"other\": {\"path\": \"/x\"}\n\t}\n}",
            r#"{"b":1,"a":"\"{","dns":["1.1.1.1",{}] }"#,
        ] {
            let (changed, path) = match get(text, &["runtimes"]).unwrap() {
                None => (insert(text, &["runtimes"], RUNTIME), vec!["runtimes"]),
                Some(_) => (
                    insert(text, &["runtimes", "ours"], RUNTIME),
                    vec!["runtimes", "ours"],
                ),
            };
            let changed = changed.unwrap();
            assert_eq!(
                get(&changed, &path).unwrap().unwrap()["runtimeType"],
                "x",
                "{changed}"
            );
            assert_eq!(remove(&changed, &path).unwrap(), text);
        }
    }

    #[test]
    fn the_last_of_many_is_removed_with_the_comma_before_it() {
        assert_eq!(remove(r#"{"a": 1, "b": 2}"#, &["b"]).unwrap(), r#"{"a": 1}"#);
        assert_eq!(remove(r#"{"a": 1 }"#, &["b"]).unwrap(), r#"{"a": 1 }"#);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (text, why) in [
            ("", "no JSON"),
            ("[]", "no JSON object"),
            ("{\"a\": 1,}", "no JSON"),
            ("{\"runtimes\": []}", "runtimes is no object"),
            ("{\"runtimes\": {}, \"runtimes\": {}}", "there twice"),
        ] {
            let error = get(text, &["runtimes", "ours"]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
