//! The connection itself: greeting, authentication, database.

use atoll_resp::Protocol;

use crate::commands::SessionCall;
use crate::error::{self, CommandError, Outcome, fixed, quoting};
use crate::store::DATABASES;

/// The version of Redis whose behaviour is offered, as clients check it.
pub(crate) const REDIS_VERSION: &str = "7.2.4";

const HELLO_UNAUTHENTICATED: CommandError = fixed(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
     <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP \
     protocol version at the same time",
);
const NO_PASSWORD_CONFIGURED: CommandError = fixed(
    "ERR AUTH <password> called without any password configured for the default user. Are you \
     sure your configuration is correct?",
);
pub(crate) const BAD_NAME: CommandError =
    fixed("ERR Client names cannot contain spaces, newlines or special characters.");

impl SessionCall<'_> {
    pub fn ping(&mut self) -> Outcome {
        match self.request.len() {
            1 => self.reply().simple("PONG"),
            2 => self.session.reply().bulk(&self.request[1]),
            _ => return Err(error::wrong_arity(self.command.name)),
        }
        Ok(())
    }

    pub fn echo(&mut self) -> Outcome {
        self.session.reply().bulk(&self.request[1]);
        Ok(())
    }

    pub fn quit(&mut self) -> Outcome {
        self.reply().ok();
        self.session.closing = true;
        Ok(())
    }

    pub fn select(&mut self) -> Outcome {
        let index = self.int_arg(1)?;
        if i32::try_from(index).is_err() {
            return Err(error::NOT_AN_INT);
        }
        let db = usize::try_from(index).ok().filter(|&db| db < DATABASES);
        self.session.db = db.ok_or(error::DB_OUT_OF_RANGE)?;
        self.reply().ok();
        Ok(())
    }

    pub fn reset(&mut self) -> Outcome {
        self.session.reset();
        self.session.authenticated = self.server.config.requirepass.is_empty();
        self.reply().simple("RESET");
        Ok(())
    }

    pub fn auth(&mut self) -> Outcome {
        match self.request.len() {
            2 => {
                if self.server.config.requirepass.is_empty() {
                    return Err(NO_PASSWORD_CONFIGURED);
                }
                self.authenticate(b"default", self.arg(1))?;
            }
            3 => self.authenticate(self.arg(1), self.arg(2))?,
            _ => return Err(error::SYNTAX),
        }
        self.reply().ok();
        Ok(())
    }

    fn authenticate(&mut self, user: &[u8], password: &[u8]) -> Outcome {
        let expected = &self.server.config.requirepass;
        let accepted = expected.is_empty() || equal_in_constant_time(expected, password);
        if user != b"default" || !accepted {
            return Err(error::WRONG_PASSWORD);
        }
        self.session.authenticated = true;
        Ok(())
    }

    pub fn hello(&mut self) -> Outcome {
        let mut protocol = self.session.protocol;
        if self.request.len() > 1 {
            let version = atoll_resp::number::parse_i64(self.arg(1));
            protocol = match version {
                None => {
                    return Err(fixed("ERR Protocol version is not an integer or out of range"));
                }
                Some(2) => Protocol::Resp2,
                Some(3) => Protocol::Resp3,
                Some(_) => return Err(error::NO_PROTOCOL),
            };
        }
        let (mut user, mut name) = (None, None);
        let mut at = 2;
        while at < self.request.len() {
            if self.is(at, "AUTH") && at + 2 < self.request.len() {
                user = Some((self.arg(at + 1), self.arg(at + 2)));
                at += 3;
            } else if self.is(at, "SETNAME") && at + 1 < self.request.len() {
                name = Some(self.arg(at + 1));
                at += 2;
            } else {
                let option = self.arg(at);
                return Err(quoting(&[b"ERR Syntax error in HELLO option '", option, b"'"]));
            }
        }
        if let Some((user, password)) = user {
            self.authenticate(user, password)?;
        }
        if !self.session.authenticated {
            return Err(HELLO_UNAUTHENTICATED);
        }
        if let Some(name) = name {
            if !is_plain(name) {
                return Err(BAD_NAME);
            }
            self.session.name = name.to_vec();
        }
        self.session.protocol = protocol;
        let id = self.session.id as i64;
        let mut reply = self.reply();
        reply.map(7);
        reply.bulk(b"server");
        reply.bulk(b"redis");
        reply.bulk(b"version");
        reply.bulk(REDIS_VERSION.as_bytes());
        reply.bulk(b"proto");
        reply.int(protocol.version());
        reply.bulk(b"id");
        reply.int(id);
        reply.bulk(b"mode");
        reply.bulk(b"standalone");
        reply.bulk(b"role");
        reply.bulk(b"master");
        reply.bulk(b"modules");
        reply.array(0);
        Ok(())
    }
}

/// Returns whether a text can stand in a line of CLIENT LIST.
pub(crate) fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

/// Compares without telling by the time it takes how much of a guess is right.
fn equal_in_constant_time(expected: &[u8], given: &[u8]) -> bool {
    let mut difference = u8::from(expected.len() != given.len());
    for (i, byte) in given.iter().enumerate() {
        difference |= byte ^ expected[i % expected.len()];
    }
    difference == 0
}
