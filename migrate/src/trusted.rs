//! Whether a directory is one that nobody but root can change or put another in the place of.
//!
//! A restore does as root what an image says. So the image, and every directory on the way to it, must be root's and writable for nobody
//! else; a directory that all may write to, such as `/tmp`, must be sticky, so that nobody removes another's. Nothing on the way is a
//! symbolic link: what is looked at here is what is opened by the same path later.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Who may write besides the owner.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why a path is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It is relative, or climbs.
    #[error("{0} is no plain absolute path")]
    NotPlain(PathBuf),
    /// It cannot be looked at.
    #[error("{path}: {source}")]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is neither a directory nor, where one may be, a file.
    #[error("{0} is no directory; name the image's directory itself, without symbolic links")]
    NotDirectory(PathBuf),
    /// Somebody else owns it.
    #[error(
        "{path} belongs to user {owner}, who could change the image while it is restored; an image and its directories must be root's"
    )]
    Foreign {
        /// What.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Somebody else may write to it.
    #[error(
        "{path} can be written to by others than root, who could change the image while it is restored; chmod go-w it"
    )]
    Writable {
        /// What.
        path: PathBuf,
    },
}

/// Whether `directory`, all on the way to it and all files in it are `owner`'s alone.
pub fn check(directory: &Path, owner: u32) -> Result<(), Distrust> {
    let plain = |component: Component<'_>| matches!(component, Component::RootDir | Component::Normal(_));
    if !directory.is_absolute() || !directory.components().all(plain) {
        return Err(Distrust::NotPlain(directory.into()));
    }
    let mut way: Vec<&Path> = directory.ancestors().collect();
    way.reverse();
    for (place, step) in way.iter().enumerate() {
        let found = look(step)?;
        if !found.is_dir() {
            return Err(Distrust::NotDirectory(step.to_path_buf()));
        }
        let is_last = place + 1 == way.len();
        judge(step, &found, owner, !is_last)?;
    }
    for entry in fs::read_dir(directory).map_err(|source| unreadable(directory, source))? {
        let path = entry.map_err(|source| unreadable(directory, source))?.path();
        let found = look(&path)?;
        if !found.is_file() && !found.is_dir() {
            return Err(Distrust::NotDirectory(path));
        }
        judge(&path, &found, owner, false)?;
    }
    Ok(())
}

fn look(path: &Path) -> Result<fs::Metadata, Distrust> {
    fs::symlink_metadata(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: std::io::Error) -> Distrust {
    Distrust::Unreadable {
        path: path.into(),
        source,
    }
}

fn judge(path: &Path, found: &fs::Metadata, owner: u32, may_be_shared: bool) -> Result<(), Distrust> {
    // Root may change anything anyway.
    if found.uid() != owner && found.uid() != 0 {
        return Err(Distrust::Foreign {
            path: path.into(),
            owner: found.uid(),
        });
    }
    let is_shared = may_be_shared && found.mode() & STICKY != 0;
    if found.mode() & OTHERS_WRITE != 0 && !is_shared {
        return Err(Distrust::Writable { path: path.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mine() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn image() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("a/image");
        fs::create_dir_all(&image).unwrap();
        fs::write(image.join("core-1.img"), "x").unwrap();
        (directory, image)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_ones_own_below_a_sticky_directory_is_trusted() {
        let (_directory, image) = image();
        check(&image, mine()).unwrap();
    }

    #[test]
    fn whatever_others_can_write_to_is_not() {
        let (_directory, image) = image();
        for path in [
            image.clone(),
            image.join("core-1.img"),
            image.parent().unwrap().to_owned(),
        ] {
            let before = fs::metadata(&path).unwrap().mode();
            mode(&path, before | 0o002);
            assert!(matches!(check(&image, mine()), Err(Distrust::Writable { path: told }) if told == path));
            mode(&path, before | 0o020);
            assert!(matches!(check(&image, mine()), Err(Distrust::Writable { .. })));
            mode(&path, before);
        }
        mode(&image, 0o1777);
        assert!(
            check(&image, mine()).is_err(),
            "others could put files into the image"
        );
    }

    #[test]
    fn links_and_climbing_paths_are_not_followed() {
        let (directory, image) = image();
        let link = directory.path().join("link");
        symlink(&image, &link).unwrap();
        assert!(matches!(check(&link, mine()), Err(Distrust::NotDirectory(_))));
        symlink(image.parent().unwrap(), directory.path().join("way")).unwrap();
        assert!(matches!(
            check(&directory.path().join("way/image"), mine()),
            Err(Distrust::NotDirectory(_))
        ));
        for path in ["image", "/tmp/../tmp/image"] {
            assert!(matches!(
                check(Path::new(path), mine()),
                Err(Distrust::NotPlain(_))
            ));
        }
        symlink("/etc/passwd", image.join("pages-1.img")).unwrap();
        assert!(matches!(check(&image, mine()), Err(Distrust::NotDirectory(_))));
    }

    #[test]
    fn another_users_directory_is_not_trusted() {
        let (_directory, image) = image();
        if nix::unistd::chown(&image, Some(4242.into()), None).is_err() {
            println!("skipped: giving a directory away needs root");
            return;
        }
        assert!(matches!(
            check(&image, mine()),
            Err(Distrust::Foreign { owner: 4242, .. })
        ));
    }
}
