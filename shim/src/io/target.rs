//! Where a stream goes: what containerd's paths and URIs mean.
//!
//! A path or `fifo://` is a fifo, or a file that exists; `file://` is a file that is made if need be; `binary://` and
//! `binary-v2://` are programs that take the output. Anything else is refused. Nothing is opened here.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::ShimError;

/// Where a stream comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A fifo that containerd has made, or a file.
    Path(PathBuf),
    /// A file to append to, made with its directories if it is not there.
    File(PathBuf),
    /// A program that takes stdout and stderr.
    Logger(LoggerCommand),
}

/// How a logger is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggerCommand {
    pub(super) program: PathBuf,
    /// Each key of the query and its first value.
    pub(super) arguments: Vec<OsString>,
    /// It must say that it is ready by a byte; else the end of file counts as well.
    pub(super) must_say_ready: bool,
}

/// What `text` means; nothing if there shall be no such stream.
pub(super) fn parse(text: &str) -> Result<Option<Target>, ShimError> {
    if text.is_empty() {
        return Ok(None);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(Some(Target::Path(PathBuf::from(text))));
    };
    let bad = |why: &str| ShimError::InvalidArgument(format!("the standard stream {text}: {why}"));
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') {
        return Err(bad(
            "its path is not absolute; write three slashes after the scheme",
        ));
    }
    let decode =
        |text: &str| decode(text).ok_or_else(|| bad("after each % two hexadecimal digits are expected"));
    let path = PathBuf::from(decode(path)?);
    let target = match scheme {
        "fifo" => Target::Path(path),
        "file" => Target::File(path),
        "binary" | "binary-v2" => Target::Logger(LoggerCommand {
            program: path,
            arguments: arguments(query, decode)?,
            must_say_ready: scheme == "binary-v2",
        }),
        _ => {
            return Err(ShimError::Unimplemented(format!(
                "the standard stream {text}: the schemes are fifo, file, binary and binary-v2"
            )));
        }
    };
    Ok(Some(target))
}

fn arguments(
    query: &str,
    decode: impl Fn(&str) -> Result<OsString, ShimError>,
) -> Result<Vec<OsString>, ShimError> {
    let (mut keys, mut arguments) = (Vec::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(&key.replace('+', " "))?;
        if !keys.contains(&key) {
            arguments.extend([key.clone(), decode(&value.replace('+', " "))?]);
            keys.push(key);
        }
    }
    Ok(arguments)
}

/// Resolves `%XX`.
fn decode(text: &str) -> Option<OsString> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        decoded.push(high << 4 | low);
    }
    Some(OsString::from_vec(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger(text: &str) -> LoggerCommand {
        match parse(text).unwrap() {
            Some(Target::Logger(command)) => command,
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn nothing_is_no_stream_and_a_path_is_taken_as_it_is() {
        assert_eq!(parse("").unwrap(), None);
        let path = "/run/containerd/fifo/1%20/a b-stdout";
        assert_eq!(parse(path).unwrap(), Some(Target::Path(path.into())));
        assert_eq!(
            parse("fifo:///run/a%20b").unwrap(),
            Some(Target::Path("/run/a b".into()))
        );
    }

    #[test]
    fn the_query_of_a_file_is_ignored() {
        let file = Some(Target::File("/var/log/a b.log".into()));
        assert_eq!(parse("file:///var/log/a%20b.log?max=1&x#y").unwrap(), file);
    }

    #[test]
    fn a_loggers_query_becomes_its_arguments_in_order() {
        let command = logger("binary:///usr/bin/log?id=a%26b&tag=x+y&id=again&flag");
        assert_eq!(command.program, PathBuf::from("/usr/bin/log"));
        assert_eq!(command.arguments, ["id", "a&b", "tag", "x y", "flag", ""]);
        assert!(!command.must_say_ready);
        assert!(logger("binary-v2:///l").must_say_ready);
        assert!(logger("binary-v2:///l").arguments.is_empty());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_named() {
        assert!(matches!(parse("npipe:///x"), Err(ShimError::Unimplemented(_))));
        for text in [
            "file://host/x",
            "binary://relative",
            "file:///a%2",
            "binary:///l?a=%zz",
        ] {
            let refused = parse(text).unwrap_err();
            assert!(
                matches!(refused, ShimError::InvalidArgument(_)),
                "{text}: {refused}"
            );
            assert!(refused.to_string().contains(text), "{refused}");
        }
    }
}
