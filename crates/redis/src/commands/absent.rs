//! What this server has none of, as Redis answers when it has none: functions, scripts, modules,
//! replicas, a cluster, users. Stock tools ask for these when they connect or clean up after
//! themselves; the answers are the true ones for a server without.

use atoll_resp::Protocol;

use crate::commands::SessionCall;
use crate::error::{self, Outcome, fixed, quoting};
use crate::table::Id;

impl SessionCall<'_> {
    /// One engine, which says so as a Redis does whose cluster support is off: cluster clients then
    /// go on without slots, and every key is theirs to ask for here.
    pub fn no_cluster(&mut self) -> Outcome {
        Err(fixed("ERR This instance has cluster support disabled"))
    }

    pub fn acl_whoami(&mut self) -> Outcome {
        self.reply().bulk(b"default");
        Ok(())
    }

    pub fn module_list(&mut self) -> Outcome {
        self.reply().array(0);
        Ok(())
    }

    pub fn scripts_flush(&mut self) -> Outcome {
        let chosen = self.request.len() == 2
            || self.request.len() == 3 && (self.is(2, "SYNC") || self.is(2, "ASYNC"));
        if !chosen {
            return Err(match self.command.id {
                Id::ScriptFlush => fixed("ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
                _ => fixed("ERR FUNCTION FLUSH only supports SYNC|ASYNC option"),
            });
        }
        self.reply().ok();
        Ok(())
    }

    pub fn scripts_kill(&mut self) -> Outcome {
        Err(fixed("NOTBUSY No scripts in execution right now."))
    }

    pub fn script_exists(&mut self) -> Outcome {
        let asked = self.request.len() - 2;
        let mut reply = self.reply();
        reply.array(asked);
        (0..asked).for_each(|_| reply.int(0));
        Ok(())
    }

    pub fn function_delete(&mut self) -> Outcome {
        Err(fixed("ERR Library not found"))
    }

    pub fn function_list(&mut self) -> Outcome {
        let (mut at, mut with_code, mut named) = (2, false, false);
        while at < self.request.len() {
            if !with_code && self.is(at, "WITHCODE") {
                with_code = true;
                at += 1;
            } else if !named && self.is(at, "LIBRARYNAME") {
                if at + 1 == self.request.len() {
                    return Err(fixed("ERR library name argument was not given"));
                }
                named = true;
                at += 2;
            } else {
                return Err(quoting(&[b"ERR Unknown argument ", self.arg(at)]));
            }
        }
        self.reply().array(0);
        Ok(())
    }

    pub fn function_stats(&mut self) -> Outcome {
        let mut reply = self.reply();
        reply.map(2);
        reply.bulk(b"running_script");
        reply.null();
        reply.bulk(b"engines");
        reply.map(0);
        Ok(())
    }

    pub fn role(&mut self) -> Outcome {
        let mut reply = self.reply();
        reply.array(3);
        reply.bulk(b"master");
        reply.int(0);
        reply.array(0);
        Ok(())
    }

    /// Nobody is waited for: there are no replicas, and a write is answered when it is durable.
    pub fn wait(&mut self) -> Outcome {
        self.int_arg(1)?;
        let timeout = atoll_resp::number::parse_i64(self.arg(2));
        match timeout.ok_or(fixed("ERR timeout is not an integer or out of range"))? {
            ..0 => Err(fixed("ERR timeout is negative")),
            0.. => {
                self.reply().int(0);
                Ok(())
            }
        }
    }

    /// Everything acknowledged is saved at every moment.
    pub fn lastsave(&mut self) -> Outcome {
        let now_s = self.server.clock.wall().0 / 1_000;
        self.reply().int(now_s as i64);
        Ok(())
    }

    pub fn time(&mut self) -> Outcome {
        let now_ms = self.server.clock.wall().0;
        let mut reply = self.reply();
        reply.array(2);
        reply.bulk((now_ms / 1_000).to_string().as_bytes());
        reply.bulk((now_ms % 1_000 * 1_000).to_string().as_bytes());
        Ok(())
    }

    /// DEBUG, as far as test suites lean on it. SLEEP is the front end's: it takes time.
    pub fn debug(&mut self) -> Outcome {
        match self.request.len() {
            2 if self.is(1, "HELP") => {
                let lines = [
                    "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
                    "ERROR <text>",
                    "    Reply with that error.",
                    "PROTOCOL <type>",
                    "    Reply with a value of that type: string, integer, double, bignum, null, array, set,",
                    "    map, attrib, push, verbatim, true or false.",
                    "SET-ACTIVE-EXPIRE <0|1>",
                    "    Setting it to 0 leaves expired keys where they are, hidden. 1 is the default.",
                    "SLEEP <seconds>",
                    "    Answer after <seconds>; other connections go on. Decimals allowed.",
                    "HELP",
                    "    Prints this help.",
                ];
                let mut reply = self.reply();
                reply.array(lines.len());
                lines.into_iter().for_each(|line| reply.simple(line));
            }
            3 if self.is(1, "ERROR") => {
                // An error is one line.
                let line = self.arg(2).iter().map(|&byte| match byte {
                    b'\r' | b'\n' => b' ',
                    other => other,
                });
                let line: Vec<u8> = line.collect();
                return Err(quoting(&[&line]));
            }
            3 if self.is(1, "PROTOCOL") => return self.sample(),
            3 if self.is(1, "SET-ACTIVE-EXPIRE") => {
                self.server.active_expire = self.arg(2) != b"0";
                self.reply().ok();
            }
            3 if self.is(1, "SLEEP") => return Err(error::NO_MULTI),
            _ => {
                let before = b"ERR unknown subcommand or wrong number of arguments for '";
                return Err(quoting(&[before, self.arg(1), b"'. Try DEBUG HELP."]));
            }
        }
        Ok(())
    }

    /// DEBUG PROTOCOL: what clients test their parsers with. The values are those of Redis, which the
    /// tests know.
    #[expect(clippy::approx_constant, reason = "the tests know this number")]
    fn sample(&mut self) -> Outcome {
        let kind = self.arg(2).to_ascii_lowercase();
        let resp3 = self.session.protocol == Protocol::Resp3;
        let mut reply = self.reply();
        match &*kind {
            b"string" => reply.bulk(b"Hello World"),
            b"integer" => reply.int(12345),
            b"double" => reply.double(3.141),
            b"bignum" => reply.big_number("1234567999999999999999999999999999999"),
            b"null" => reply.null(),
            b"array" => {
                reply.array(3);
                (0..3).for_each(|n| reply.int(n));
            }
            b"set" => {
                reply.set(3);
                (0..3).for_each(|n| reply.int(n));
            }
            b"map" => {
                reply.map(3);
                for n in 0..3 {
                    reply.int(n);
                    reply.boolean(n == 1);
                }
            }
            b"attrib" => {
                if resp3 {
                    reply.attribute(1);
                    reply.bulk(b"key-popularity");
                    reply.array(2);
                    reply.bulk(b"key:123");
                    reply.int(90);
                }
                reply.bulk(b"Some real reply following the attribute");
            }
            b"push" if !resp3 => {
                return Err(fixed("ERR RESP2 is not supported by this command"));
            }
            b"push" => {
                reply.push(2);
                reply.bulk(b"server-cpu-usage");
                reply.int(42);
                reply.bulk(b"Some real reply following the push reply");
            }
            b"true" => reply.boolean(true),
            b"false" => reply.boolean(false),
            b"verbatim" => reply.verbatim(b"txt", b"This is a verbatim\nstring"),
            _ => {
                return Err(fixed(
                    "ERR Wrong protocol type name. Please use one of the following: string|integer|\
                     double|bignum|null|array|set|map|attrib|push|verbatim|true|false",
                ));
            }
        }
        Ok(())
    }
}
