//! Bytes of a peer, taken as frames of the protocol between two agents.
#![no_main]

use godwit_migrate::frame::{self, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut rest = input;
        loop {
            let before = rest;
            let Ok(Some(frame)) = frame::read(&mut rest).await else {
                return;
            };
            let mut written = Vec::new();
            frame::write(&mut written, &frame)
                .await
                .expect("what was read can be sent");
            if let Frame::Message(message) = &frame {
                // JSON has many spellings, but a message that is sent on is the same one.
                assert!(!message.name().is_empty());
                let again = frame::read(&mut written.as_slice())
                    .await
                    .expect("what was sent can be read");
                let Some(Frame::Message(again)) = again else {
                    panic!("a message became something else");
                };
                assert_eq!(format!("{message:?}"), format!("{again:?}"));
            } else {
                assert_eq!(before[..before.len() - rest.len()], written);
            }
        }
    });
});
