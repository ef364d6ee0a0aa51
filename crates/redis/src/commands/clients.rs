//! Connections among each other: who is there, who is closed, who has to wait.
//!
//! A connection is known to its core alone, so CLIENT LIST and CLIENT KILL are a [`Question`] that
//! each core answers about its own clients; whoever asked puts the answers together.

use std::net::SocketAddr;
use std::time::Duration;

use atoll_resp::{ReplyWriter, Request};

use crate::commands::SessionCall;
use crate::commands::connection::is_plain;
use crate::error::{self, Outcome, fixed, quoting};
use crate::server::Server;
use crate::session::{ClientId, Replies, Session};
use crate::store::Durability;
use crate::table::{Command, Id};
use crate::task::{Answer, Clients, Consistency, Question};

/// What CLIENT KILL of old and the others say when nobody is meant.
const NO_SUCH_CLIENT: &str = "ERR No such client";

/// Returns what a command asks all cores, `None` if it is no such command.
pub(crate) fn question(
    command: &Command,
    request: &Request<'_>,
    me: ClientId,
) -> Outcome<Option<Question>> {
    Ok(Some(match command.id {
        Id::ClientList => Question::List(listed(request)?),
        Id::ClientKill => killed(request, me)?,
        Id::ClientUnpause => Question::Resume,
        _ => return Ok(None),
    }))
}

fn is(request: &Request<'_>, index: usize, word: &str) -> bool {
    request.get(index).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
}

fn listed(request: &Request<'_>) -> Outcome<Clients> {
    let mut clients = Clients::default();
    if is(request, 2, "TYPE") && request.len() == 4 {
        clients.other_type = is_other_type(request, 3)?;
    } else if is(request, 2, "ID") && request.len() > 3 {
        let invalid = fixed("ERR Invalid client ID");
        // A number that is no client's is none of them.
        let ids =
            request.tail(3).map(|arg| atoll_resp::number::parse_i64(arg).ok_or(invalid.clone()));
        let ids = ids.collect::<Outcome<Vec<_>>>()?;
        clients.ids = Some(ids.into_iter().filter_map(|id| ClientId::try_from(id).ok()).collect());
    } else if request.len() != 2 {
        return Err(error::SYNTAX);
    }
    Ok(clients)
}

fn killed(request: &Request<'_>, me: ClientId) -> Outcome<Question> {
    let mut clients = Clients::default();
    if request.len() == 3 {
        // The form of old: an address, and an error if there is no such client.
        clients.peer = request.get(2).map(Box::from);
        return Ok(Question::Kill { clients, counts: false });
    }
    clients.except = Some(me);
    for at in (2..request.len()).step_by(2) {
        let value = request.get(at + 1).ok_or(error::SYNTAX)?;
        if is(request, at, "ID") {
            let invalid = fixed("ERR client-id should be greater than 0");
            clients.ids.get_or_insert_default().push(client_id(value).ok_or(invalid)?);
        } else if is(request, at, "TYPE") {
            clients.other_type = is_other_type(request, at + 1)?;
        } else if is(request, at, "ADDR") {
            clients.peer = Some(value.into());
        } else if is(request, at, "LADDR") {
            clients.local = Some(value.into());
        } else if is(request, at, "USER") {
            if value != b"default" {
                return Err(quoting(&[b"ERR No such user '", value, b"'"]));
            }
        } else if is(request, at, "SKIPME") {
            clients.except = match (is(request, at + 1, "yes"), is(request, at + 1, "no")) {
                (true, _) => Some(me),
                (_, true) => None,
                _ => return Err(error::SYNTAX),
            };
        } else {
            return Err(error::SYNTAX);
        }
    }
    Ok(Question::Kill { clients, counts: true })
}

fn client_id(arg: &[u8]) -> Option<ClientId> {
    let id = atoll_resp::number::parse_i64(arg);
    id.and_then(|id| ClientId::try_from(id).ok()).filter(|&id| id > 0)
}

fn is_other_type(request: &Request<'_>, index: usize) -> Outcome<bool> {
    let others = ["master", "replica", "slave", "pubsub"];
    match () {
        () if is(request, index, "normal") => Ok(false),
        () if others.iter().any(|other| is(request, index, other)) => Ok(true),
        () => {
            let given = request.get(index).unwrap_or(&[]);
            Err(quoting(&[b"ERR Unknown client type '", given, b"'"]))
        }
    }
}

impl Clients {
    fn selects(&self, session: &Session) -> bool {
        let is = |wanted: &Option<Box<[u8]>>, addr: SocketAddr| {
            wanted.as_ref().is_none_or(|wanted| **wanted == *addr.to_string().as_bytes())
        };
        !self.other_type
            && self.except != Some(session.id)
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&session.id))
            && is(&self.peer, session.peer)
            && is(&self.local, session.local)
    }
}

impl Server {
    /// Answers a question about this core's clients; `me` is the one whose command is under way.
    pub(crate) fn answer(&mut self, question: &Question, me: Option<&mut Session>) -> Answer {
        match question {
            Question::List(clients) => {
                let now = self.tick;
                let others = self.sessions.values().map(|session| &**session);
                let lines = others
                    .chain(me.map(|me| &*me))
                    .filter(|session| clients.selects(session))
                    .map(|session| (session.id, session.describe(now)));
                Answer::Lines(lines.collect())
            }
            Question::Kill { clients, .. } => {
                let mut killed = 0;
                for session in self.sessions.values_mut() {
                    if clients.selects(session) {
                        session.closing = true;
                        self.killed.push(session.id);
                        killed += 1;
                    }
                }
                if let Some(me) = me
                    && clients.selects(me)
                {
                    // After its reply.
                    me.closing = true;
                    killed += 1;
                }
                Answer::Killed(killed)
            }
            Question::Resume => Answer::Resumed,
        }
    }
}

/// Writes what all cores' answers come to.
pub(crate) fn tell(question: &Question, answers: Vec<Answer>, reply: &mut ReplyWriter<'_>) {
    match question {
        Question::List(_) => {
            let mut lines: Vec<(ClientId, Vec<u8>)> = Vec::new();
            for answer in answers {
                if let Answer::Lines(more) = answer {
                    lines.extend(more);
                }
            }
            lines.sort_unstable();
            let mut text = Vec::new();
            for (_, line) in lines {
                text.extend_from_slice(&line);
                text.push(b'\n');
            }
            reply.verbatim(b"txt", &text);
        }
        Question::Kill { counts, .. } => {
            let killed = answers.iter().map(|answer| match answer {
                Answer::Killed(killed) => *killed,
                _ => 0,
            });
            match (counts, killed.sum()) {
                (true, killed) => reply.count(killed),
                (false, 0) => reply.error(NO_SUCH_CLIENT.as_bytes()),
                (false, _) => reply.ok(),
            }
        }
        Question::Resume => reply.ok(),
    }
}

impl SessionCall<'_> {
    /// Answers by this core's clients alone: there is no other core, or, within EXEC, no time to
    /// ask them.
    pub fn ask(&mut self) -> Outcome {
        let asked = question(self.command, &self.request, self.session.id)?;
        let question = asked.ok_or(error::MISROUTED)?;
        if question == Question::Resume {
            self.server.unpause();
        }
        let answer = self.server.answer(&question, Some(self.session));
        tell(&question, vec![answer], &mut self.session.reply());
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
            return Err(crate::commands::connection::BAD_NAME);
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

    pub fn client_pause(&mut self) -> Outcome {
        let all = match self.request.len() {
            3 => true,
            4 if self.is(3, "ALL") => true,
            4 if self.is(3, "WRITE") => false,
            4 => return Err(fixed("ERR CLIENT PAUSE mode must be WRITE or ALL")),
            _ => {
                return Err(fixed(
                    "ERR unknown subcommand or wrong number of arguments for 'PAUSE'. Try CLIENT HELP.",
                ));
            }
        };
        let timeout = atoll_resp::number::parse_i64(self.arg(2))
            .ok_or(fixed("ERR timeout is not an integer or out of range"))?;
        let timeout_ms = u64::try_from(timeout).map_err(|_| fixed("ERR timeout is negative"))?;
        let now = self.server.clock.now();
        let until = now.after(Duration::from_millis(timeout_ms));
        self.server.shared.pause_until(until, all, now);
        self.server.look();
        self.reply().ok();
        Ok(())
    }

    /// No command of this version blocks a client, so none can be unblocked.
    pub fn client_unblock(&mut self) -> Outcome {
        let known = self.is(3, "TIMEOUT") || self.is(3, "ERROR");
        match self.request.len() {
            3 => {}
            4 if known => {}
            4 => return Err(fixed("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")),
            _ => {
                return Err(fixed(
                    "ERR unknown subcommand or wrong number of arguments for 'UNBLOCK'. Try CLIENT HELP.",
                ));
            }
        }
        self.int_arg(2)?;
        self.reply().int(0);
        Ok(())
    }

    /// Invalidations are not sent yet; a client that wants them has to hear so.
    pub fn client_tracking(&mut self) -> Outcome {
        if self.is(2, "OFF") && self.request.len() == 3 {
            self.reply().ok();
            return Ok(());
        }
        match self.is(2, "ON") || self.is(2, "OFF") {
            true => {
                Err(fixed("ERR this version does not send invalidations to clients that cache"))
            }
            false => Err(error::SYNTAX),
        }
    }

    pub fn client_caching(&mut self) -> Outcome {
        Err(fixed(
            "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or \
             OPTOUT mode enabled",
        ))
    }

    pub fn client_getredir(&mut self) -> Outcome {
        self.reply().int(-1);
        Ok(())
    }

    pub fn client_trackinginfo(&mut self) -> Outcome {
        let mut reply = self.reply();
        reply.map(3);
        reply.bulk(b"flags");
        reply.set(1);
        reply.bulk(b"off");
        reply.bulk(b"redirect");
        reply.int(-1);
        reply.bulk(b"prefixes");
        reply.array(0);
        Ok(())
    }

    /// CLIENT DURABILITY: what acknowledged writes of this connection survive.
    pub fn client_durability(&mut self) -> Outcome {
        if self.request.len() > 3 {
            return Err(error::SYNTAX);
        }
        if self.request.len() == 3 {
            let modes = [Durability::Synced, Durability::Interval, Durability::Buffered];
            let mode = modes.into_iter().find(|mode| self.is(2, mode.name()));
            if mode.is_none() && !self.is(2, "DEFAULT") {
                return Err(fixed(
                    "ERR CLIENT DURABILITY takes SYNCED, INTERVAL, BUFFERED or DEFAULT",
                ));
            }
            self.session.durability = mode;
            self.reply().ok();
            return Ok(());
        }
        let mode = self.session.durability.unwrap_or(self.server.config.durability);
        self.reply().bulk(mode.name().as_bytes());
        Ok(())
    }

    /// CLIENT CONSISTENCY: how old what this connection reads may be.
    pub fn client_consistency(&mut self) -> Outcome {
        let wrong = fixed("ERR CLIENT CONSISTENCY takes FAST, STRICT or STALE <milliseconds>");
        let chosen = match self.request.len() {
            2 => {
                let text = match self.session.consistency {
                    Consistency::Fast => "fast".to_owned(),
                    Consistency::Strict => "strict".to_owned(),
                    Consistency::Stale { ms } => format!("stale {ms}"),
                };
                self.reply().bulk(text.as_bytes());
                return Ok(());
            }
            3 if self.is(2, "FAST") => Consistency::Fast,
            3 if self.is(2, "STRICT") => Consistency::Strict,
            4 if self.is(2, "STALE") => {
                let ms = self.int_arg(3)?;
                let ms = u64::try_from(ms).ok().filter(|ms| *ms > 0);
                Consistency::Stale { ms: ms.ok_or(error::NOT_AN_INTEGER)? }
            }
            _ => return Err(wrong),
        };
        self.session.consistency = chosen;
        self.reply().ok();
        Ok(())
    }
}
