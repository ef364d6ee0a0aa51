//! The connection itself: greeting, authentication, database, name, and its neighbours.

use atoll_resp::Protocol;

use crate::commands::SessionCall;
use crate::error::{self, CommandError, Outcome, fixed, quoting};
use crate::session::{ClientId, Replies, Session};
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
const BAD_NAME: CommandError =
    fixed("ERR Client names cannot contain spaces, newlines or special characters.");

/// Which connections CLIENT KILL and CLIENT LIST mean.
#[derive(Default)]
struct Filter<'a> {
    ids: Option<Vec<ClientId>>,
    peer: Option<&'a [u8]>,
    local: Option<&'a [u8]>,
    /// Whether a type other than `normal` is asked for: there are none of these.
    other_type: bool,
}

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

    pub fn client_id(&mut self) -> Outcome {
        let id = self.session.id as i64;
        self.reply().int(id);
        Ok(())
    }

    pub fn client_getname(&mut self) -> Outcome {
        let name = std::mem::take(&mut self.session.name);
        match name.is_empty() {
            true => self.reply().null(),
            false => self.reply().bulk(&name),
        }
        self.session.name = name;
        Ok(())
    }

    pub fn client_setname(&mut self) -> Outcome {
        if !is_plain(self.arg(2)) {
            return Err(BAD_NAME);
        }
        self.session.name = self.arg(2).to_vec();
        self.reply().ok();
        Ok(())
    }

    pub fn client_setinfo(&mut self) -> Outcome {
        let (option, value) = (self.arg(2), self.arg(3));
        let (field, name) = if self.is(2, "lib-name") {
            (&mut self.session.library, "lib-name")
        } else if self.is(2, "lib-ver") {
            (&mut self.session.library_version, "lib-ver")
        } else {
            return Err(quoting(&[b"ERR Unrecognized option '", option, b"'"]));
        };
        if !is_plain(value) {
            let rest = b" cannot contain spaces, newlines or special characters.";
            return Err(quoting(&[b"ERR ", name.as_bytes(), rest]));
        }
        *field = value.to_vec();
        self.reply().ok();
        Ok(())
    }

    pub fn client_reply(&mut self) -> Outcome {
        if self.is(2, "ON") {
            self.session.replies = Replies::On;
            self.reply().ok();
        } else if self.is(2, "OFF") {
            self.session.replies = Replies::Off;
        } else if self.is(2, "SKIP") {
            if self.session.replies != Replies::Off {
                self.session.replies = Replies::SkipNext;
            }
        } else {
            return Err(error::SYNTAX);
        }
        Ok(())
    }

    pub fn client_no_evict(&mut self) -> Outcome {
        self.session.no_evict = self.on_or_off(2)?;
        self.reply().ok();
        Ok(())
    }

    pub fn client_no_touch(&mut self) -> Outcome {
        self.session.no_touch = self.on_or_off(2)?;
        self.reply().ok();
        Ok(())
    }

    fn on_or_off(&self, index: usize) -> Outcome<bool> {
        match (self.is(index, "ON"), self.is(index, "OFF")) {
            (true, _) => Ok(true),
            (_, true) => Ok(false),
            _ => Err(error::SYNTAX),
        }
    }

    pub fn client_info(&mut self) -> Outcome {
        let mut line = self.session.describe(self.server.tick);
        line.push(b'\n');
        self.reply().verbatim(b"txt", &line);
        Ok(())
    }

    pub fn client_list(&mut self) -> Outcome {
        let mut filter = Filter::default();
        if self.is(2, "TYPE") && self.request.len() == 4 {
            filter.other_type = self.is_other_type(3)?;
        } else if self.is(2, "ID") && self.request.len() > 3 {
            let ids = (3..self.request.len()).map(|index| self.client_id_arg(index));
            filter.ids = Some(ids.collect::<Outcome<_>>()?);
        } else if self.request.len() != 2 {
            return Err(error::SYNTAX);
        }
        let now = self.server.tick;
        let others = self.server.sessions.values().map(|session| &**session);
        let mut lines: Vec<(ClientId, Vec<u8>)> = others
            .chain([&*self.session])
            .filter(|session| filter.selects(session))
            .map(|session| (session.id, session.describe(now)))
            .collect();
        lines.sort_unstable();
        let mut text = Vec::new();
        for (_, line) in lines {
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        self.reply().verbatim(b"txt", &text);
        Ok(())
    }

    pub fn client_kill(&mut self) -> Outcome {
        if self.request.len() == 3 {
            // The form of old: an address, and an error if there is no such client.
            let filter = Filter { peer: Some(self.arg(2)), ..Filter::default() };
            if self.kill(&filter, false) == 0 {
                return Err(fixed("ERR No such client"));
            }
            self.reply().ok();
            return Ok(());
        }
        let mut filter = Filter::default();
        let mut skip_me = true;
        for at in (2..self.request.len()).step_by(2) {
            let value = self.request.get(at + 1).ok_or(error::SYNTAX)?;
            if self.is(at, "ID") {
                filter.ids.get_or_insert_default().push(self.client_id_arg(at + 1)?);
            } else if self.is(at, "TYPE") {
                filter.other_type = self.is_other_type(at + 1)?;
            } else if self.is(at, "ADDR") {
                filter.peer = Some(value);
            } else if self.is(at, "LADDR") {
                filter.local = Some(value);
            } else if self.is(at, "USER") {
                if value != b"default" {
                    return Err(quoting(&[b"ERR No such user '", value, b"'"]));
                }
            } else if self.is(at, "SKIPME") {
                skip_me = match (self.is(at + 1, "yes"), self.is(at + 1, "no")) {
                    (true, _) => true,
                    (_, true) => false,
                    _ => return Err(error::SYNTAX),
                };
            } else {
                return Err(error::SYNTAX);
            }
        }
        let killed = self.kill(&filter, skip_me);
        self.reply().count(killed);
        Ok(())
    }

    fn kill(&mut self, filter: &Filter<'_>, skip_me: bool) -> usize {
        let mut killed = 0;
        for session in self.server.sessions.values_mut() {
            if filter.selects(session) {
                session.closing = true;
                self.server.killed.push(session.id);
                killed += 1;
            }
        }
        if !skip_me && filter.selects(self.session) {
            self.session.closing = true;
            killed += 1;
        }
        killed
    }

    fn client_id_arg(&self, index: usize) -> Outcome<ClientId> {
        let id = atoll_resp::number::parse_i64(self.arg(index));
        let id = id.and_then(|id| ClientId::try_from(id).ok()).filter(|&id| id > 0);
        let error = match self.command.name {
            "client|list" => fixed("ERR Invalid client ID"),
            _ => fixed("ERR client-id should be greater than 0"),
        };
        id.ok_or(error)
    }

    fn is_other_type(&self, index: usize) -> Outcome<bool> {
        match () {
            () if self.is(index, "normal") => Ok(false),
            () if ["master", "replica", "slave", "pubsub"].iter().any(|t| self.is(index, t)) => {
                Ok(true)
            }
            () => Err(quoting(&[b"ERR Unknown client type '", self.arg(index), b"'"])),
        }
    }
}

impl Filter<'_> {
    fn selects(&self, session: &Session) -> bool {
        let is = |wanted: Option<&[u8]>, addr: std::net::SocketAddr| {
            wanted.is_none_or(|wanted| wanted == addr.to_string().as_bytes())
        };
        !self.other_type
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&session.id))
            && is(self.peer, session.peer)
            && is(self.local, session.local)
    }
}

/// Returns whether a text can stand in a line of CLIENT LIST.
fn is_plain(text: &[u8]) -> bool {
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
