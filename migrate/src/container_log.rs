//! A container's log on its way: read where it grows, written where the engine already has it open.
//!
//! An engine notes how long the log is when it starts a container and counts only what it writes itself from then on, so
//! nothing may be added behind its back. What the source logs after that goes into a *reserve*: blanks at the end of
//! what was written before the start, which are no part of any line and which readers of JSON pass over. No line is
//! changed here, and none is cut.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What a container can log between its engine's start at the destination and its freeze: a second of a program that
/// logs 5000 lines in it.
pub const RESERVE_BYTES: usize = 512 << 10;

/// A log that grows, and how far it was sent.
#[derive(Debug)]
pub struct Tail {
    file: File,
    sent: u64,
}

impl Tail {
    /// The whole of the log at `path` is still to be sent.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            sent: 0,
        })
    }

    /// Copies the lines that were added since the last time and up to now, without what is left of a reserve.
    pub fn copy_rest(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(self.sent))?;
        let mut lines = BufReader::new((&self.file).take(length.saturating_sub(self.sent)));
        let mut line = Vec::new();
        // The writer may be in the middle of the last line: it goes along the next time.
        while lines.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            self.sent += line.len() as u64;
            let begin = line.iter().position(|byte| *byte != b' ').unwrap_or(0);
            out.write_all(&line[begin..])?;
            line.clear();
        }
        Ok(())
    }
}

/// A log that is written for an engine that is to take it over.
#[derive(Debug)]
pub struct Reserve {
    file: File,
    position: u64,
    end: u64,
}

impl Reserve {
    /// Writes all of `input` and a reserve into the new log at `path`. The engine must not have opened it yet.
    pub fn begin(path: &Path, input: &mut dyn Read) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(path)?;
        let position = io::copy(input, &mut file)?;
        file.write_all(&vec![b' '; RESERVE_BYTES])?;
        Ok(Self {
            file,
            position,
            end: position + RESERVE_BYTES as u64,
        })
    }

    /// Writes all of `input` into the reserve; returns how many bytes of it found no room and are dropped.
    pub fn fill(&mut self, input: &mut dyn Read) -> io::Result<u64> {
        let mut lines = BufReader::new(input);
        let (mut line, mut dropped) = (Vec::new(), 0);
        while lines.read_until(b'\n', &mut line)? > 0 {
            let length = line.len() as u64;
            if dropped == 0 && self.position + length <= self.end {
                self.file.write_all_at(&line, self.position)?;
                self.position += length;
            } else {
                dropped += length;
            }
            line.clear();
        }
        Ok(dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(tail: &mut Tail) -> String {
        let mut sent = Vec::new();
        tail.copy_rest(&mut sent).unwrap();
        String::from_utf8(sent).unwrap()
    }

    #[test]
    fn a_log_is_sent_in_whole_lines_and_each_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = File::create(&path).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        log.write_all(b"{one}\n{tw").unwrap();
        assert_eq!(rest(&mut tail), "{one}\n");
        log.write_all(b"o}\n").unwrap();
        assert_eq!(rest(&mut tail), "{two}\n");
        assert_eq!(rest(&mut tail), "");
    }

    #[test]
    fn what_comes_after_the_start_leaves_the_length_as_it_was_and_the_next_move_leaves_the_blanks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Reserve::begin(&path, &mut b"{one}\n".as_slice()).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(log.fill(&mut b"{two}\n".as_slice()).unwrap(), 0);
        assert_eq!(log.fill(&mut b"{three}\n".as_slice()).unwrap(), 0);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
        let mut engine = OpenOptions::new().append(true).open(&path).unwrap();
        engine.write_all(b"{four}\n").unwrap();
        assert_eq!(
            rest(&mut Tail::open(&path).unwrap()),
            "{one}\n{two}\n{three}\n{four}\n"
        );
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted_and_no_line_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Reserve::begin(&path, &mut b"".as_slice()).unwrap();
        let line = "x".repeat(RESERVE_BYTES / 2) + "\n";
        let dropped = log.fill(&mut (line.clone() + &line + "y\n").as_bytes()).unwrap();
        assert_eq!(dropped, line.len() as u64 + 2);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim_end_matches(' '), line);
    }
}
