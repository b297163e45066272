//! What `--help` says below the options of each command: examples and exit codes. The manual pages have it too.
//!
//! A block of each text is a heading that ends with a colon and lines indented by two; `man` makes a section of it. A
//! test parses every example, here and in the documents.

pub(crate) const GODWIT: &str = "\
Examples:
  godwit doctor --peer hb     what stands in the way of moves to hb
  godwit containers           what there is on this host
  godwit inspect redis        what there is in it
  godwit plan redis hb        whether redis could go to hb
  godwit migrate redis hb     move it
  godwit migrations           what became of the moves

Exit codes:
  0    done
  1    failed; a container that was to be moved runs where it was
  2    wrong usage
  3    committed: the container belongs to the destination, which has not confirmed that it runs
  4    refused by the plan; nothing was touched
  5    the agent on this host does not answer
  130  aborted on request; the container runs where it was

Colours:
  Only on a terminal, and not if NO_COLOR is set.";

pub(crate) const AGENT: &str = "\
Examples:
  godwit agent                            as the unit godwit-agent.service does
  godwit agent --config ./agent.toml

Exit codes:
  0  ended on request (SIGTERM, ^C), with every move that was not committed undone
  1  the configuration cannot be used, or a socket cannot be opened
  2  wrong usage";

pub(crate) const MIGRATE: &str = "\
Examples:
  godwit migrate redis hb
  godwit migrate redis hb --mode pre --downtime 150     copy memory until 150 ms of pause are in reach
  godwit migrate redis hb --tcp keep --timeout 60       rather not at all than with connections lost, or late
  godwit migrate redis hb --volumes skip --volumes data=copy
  godwit migrate birds/counter hb --json                a container of containerd, in namespace birds

Exit codes:
  0    the container runs on the destination
  1    failed; the container runs on here
  2    wrong usage
  3    committed: the container belongs to the destination, which has not confirmed that it runs
  4    refused by the plan; nothing was touched
  5    the agent on this host does not answer
  130  aborted on request; the container runs on here";

pub(crate) const EXPORT: &str = "\
Examples:
  godwit export redis -o redis.tar.zst                  redis is stopped, and in the file
  godwit export redis -o signed.tar.zst --sign          an import can tell that this host has made it
  godwit export redis -o backup.tar --leave-running --compress none
  godwit export redis -o - | ssh hb godwit import -     through a pipe
  godwit export birds/counter -o counter.tar.zst        a container of containerd, in namespace birds
  godwit export redis --oci redis-checkpoint:1          into an image of the engine

Exit codes:
  0    the archive, or the image, is stored
  1    failed; the container runs on, and there is no archive
  2    wrong usage
  4    refused; nothing was touched
  5    the agent on this host does not answer
  130  aborted on request; the container runs on, and there is no archive";

pub(crate) const IMPORT: &str = "\
Examples:
  godwit import redis.tar.zst
  godwit import signed.tar.zst --require-signature
  godwit import --oci redis-checkpoint:1            out of an image of the engine
  godwit import redis.tar.zst --name again --publish 6380:6379 --tcp close

Exit codes:
  0    the container runs here
  1    failed; nothing of it is left on this host
  2    wrong usage
  4    refused; nothing was touched
  5    the agent on this host does not answer
  130  aborted on request; nothing of it is left on this host";

pub(crate) const PLAN: &str = "\
Examples:
  godwit plan redis hb
  godwit plan redis hb --tcp keep --json

Exit codes:
  0  it can move; there may be warnings
  1  the plan could not be made
  2  wrong usage
  4  it cannot move
  5  the agent on this host does not answer";

pub(crate) const DOCTOR: &str = "\
Examples:
  godwit doctor
  godwit doctor --peer hb --json

Exit codes:
  0  no problem; there may be warnings
  1  a problem, or the agent refused the request
  2  wrong usage";

pub(crate) const CONTAINERS: &str = "\
Examples:
  godwit containers
  godwit containers --json

Exit codes:
  0  listed; an engine that does not answer is named on standard error
  1  the agent refused the request
  2  wrong usage
  5  the agent on this host does not answer";

pub(crate) const INSPECT: &str = "\
Examples:
  godwit inspect redis                          a running container
  godwit inspect /var/tmp/one                   a checkpoint image's directory
  godwit inspect web.tar                        an archive: podman's, CRI-O's or ours
  godwit inspect /var/tmp/one --svg memory.svg --html memory.html
  godwit inspect redis --json | jq '.processes[].sockets'

Exit codes:
  0  told, and nothing that was found hinders a checkpoint or a restore here
  1  it cannot be looked at
  2  wrong usage
  4  told, and something hinders a restore here
  5  the agent on this host does not answer";

pub(crate) const RESTORE: &str = "\
Examples:
  godwit restore web one                                  what `docker checkpoint create web one` has left
  godwit restore web one --checkpoint-dir /var/tmp/kept   what it has left there
  godwit restore web /var/tmp/one                         an image's directory

Exit codes:
  0  the container runs on from the checkpoint
  1  failed; the container is stopped as it was, the checkpoint unchanged
  2  wrong usage
  4  refused; nothing was touched
  5  the agent on this host does not answer";

pub(crate) const MIGRATIONS: &str = "\
Examples:
  godwit migrations                                          those under way, and the last hundred
  godwit migrations show 6c2c0c4b8f3e0a51 --svg move.svg     draw one
  godwit migrations abort 6c2c0c4b8f3e0a51                   give one up
  godwit migrations recover 0b1f6d9be7a2c3d4                 what can be done about one that is broken

Exit codes:
  0  done; of `abort`: the container runs where it was
  1  failed, or refused by the agent; of `abort`: it was moved all the same
  2  wrong usage
  5  the agent on this host does not answer";

pub(crate) const FORCE_COMPLETE: &str = "\
Examples:
  godwit force-complete 6c2c0c4b8f3e0a51

Exit codes:
  0  it will freeze its container, or has
  1  no such move from this host is under way
  2  wrong usage
  5  the agent on this host does not answer";

pub(crate) const SETUP: &str = "\
Examples:
  godwit setup docker --dry-run              what it would change
  godwit setup docker                        add the runtime `godwit`
  godwit setup docker --drop-in --experimental
  godwit setup docker --undo                 take all of it back

Exit codes:
  0  changed, or nothing to change
  1  failed, and nothing is changed
  2  wrong usage";

pub(crate) const CA: &str = "\
Examples:
  godwit ca init --dir ca
  godwit ca issue --dir ca --host ha --address 192.0.2.11 --out ha

Exit codes:
  0  made
  1  failed; an authority that is there is not overwritten
  2  wrong usage";
