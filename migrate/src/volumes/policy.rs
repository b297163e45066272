//! What becomes of a container's volumes in a move, as its user asks for it.
//!
//! Written `POLICY` for all, or `VOLUME=POLICY` for one, which is named or said by its place in the container. It does not know
//! which volumes there are.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What becomes of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It is made at the destination and its content goes over.
    #[default]
    Copy,
    /// The destination's volume of the same name is the same storage: nothing goes over.
    Shared,
    /// It is made at the destination if it is missing; its content stays where it is.
    Skip,
}

impl Policy {
    /// All of them, as they are written.
    pub const NAMES: [&str; 3] = ["copy", "shared", "skip"];
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Copy => "copy",
            Self::Shared => "shared",
            Self::Skip => "skip",
        })
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "copy" => Ok(Self::Copy),
            "shared" => Ok(Self::Shared),
            "skip" => Ok(Self::Skip),
            other => Err(format!(
                "{other:?} is nothing that can become of a volume; there are {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}

/// One word of a user: for one volume, or for all that have no word of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The volume's name or its place in the container; nothing for all.
    pub volume: Option<String>,
    /// What becomes of it.
    pub policy: Policy,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A place in a container may have a `=` in it, a policy has none.
        let (volume, policy) = match text.rsplit_once('=') {
            Some(("", _)) => return Err("there is no volume before the `=`".into()),
            Some((volume, policy)) => (Some(volume.to_owned()), policy),
            None => (None, text),
        };
        Ok(Self {
            volume,
            policy: policy.parse()?,
        })
    }
}

/// What becomes of all of a container's volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policies {
    /// Of those that are not named.
    pub all: Policy,
    /// Of those that are, by name or by place in the container.
    pub of: BTreeMap<String, Policy>,
}

impl Policies {
    /// What becomes of the volume of this name, which is at `target` in the container.
    pub fn of(&self, name: &str, target: &str) -> Policy {
        let named = self.of.get(name).or_else(|| self.of.get(target));
        named.copied().unwrap_or(self.all)
    }
}

impl FromIterator<Wish> for Policies {
    /// A later word counts more than an earlier one.
    fn from_iter<I: IntoIterator<Item = Wish>>(wishes: I) -> Self {
        let mut policies = Self::default();
        for Wish { volume, policy } in wishes {
            match volume {
                Some(volume) => drop(policies.of.insert(volume, policy)),
                None => policies.all = policy,
            }
        }
        policies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Result<Policies, String> {
        words.iter().map(|word| word.parse::<Wish>()).collect()
    }

    #[test]
    fn what_is_said_of_one_volume_counts_more_than_what_is_said_of_all() {
        let policies = asked(&["cache=skip", "shared", "/a=b=copy", "cache=copy", "/srv=skip"]).unwrap();
        for (name, target, policy) in [
            ("cache", "/srv", Policy::Copy),
            ("data", "/srv", Policy::Skip),
            ("data", "/a=b", Policy::Copy),
            ("data", "/d", Policy::Shared),
        ] {
            assert_eq!(policies.of(name, target), policy, "{name} at {target}");
        }
        assert_eq!(asked(&[]).unwrap().of("data", "/d"), Policy::Copy);
    }

    #[test]
    fn a_word_that_means_nothing_is_refused_with_those_that_do() {
        for word in ["move", "data=", "data=move", "=copy"] {
            assert!(asked(&[word]).is_err(), "{word}");
        }
        assert!(asked(&["data=move"]).unwrap_err().contains("copy, shared, skip"));
        for name in Policy::NAMES {
            assert_eq!(name.parse::<Policy>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn the_local_api_may_leave_out_what_is_as_by_default() {
        let read = |text| serde_json::from_str::<Policies>(text);
        assert_eq!(read("{}").unwrap(), Policies::default());
        let told = read(r#"{"of":{"cache":"skip"}}"#).unwrap();
        assert_eq!(told.of("cache", ""), Policy::Skip);
        assert!(read(r#"{"cache":"skip"}"#).is_err());
    }
}
