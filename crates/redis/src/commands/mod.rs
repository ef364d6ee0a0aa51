//! The session's own commands, by group: methods of [`SessionCall`] that read their arguments and
//! write their reply or return their error; the arity is checked before.

mod absent;
pub(crate) mod clients;
mod connection;
pub(crate) mod info;
pub(crate) mod monitor;
mod server;
mod transactions;

use atoll_resp::{ReplyWriter, Request};

use crate::error::{self, Outcome};
use crate::server::Server;
use crate::session::Session;
use crate::table::{Command, Id};

/// One execution of a command on the session and the server.
pub(crate) struct SessionCall<'a> {
    pub server: &'a mut Server,
    pub session: &'a mut Session,
    pub request: Request<'a>,
    pub command: &'static Command,
}

impl<'a> SessionCall<'a> {
    /// Executes the command. An error replaces whatever it has replied.
    pub fn run(mut self) -> Outcome {
        match self.command.id {
            Id::AclWhoami => self.acl_whoami(),
            Id::Asking
            | Id::ClusterCountkeysinslot
            | Id::ClusterGetkeysinslot
            | Id::ClusterHelp
            | Id::ClusterInfo
            | Id::ClusterKeyslot
            | Id::ClusterLinks
            | Id::ClusterMyid
            | Id::ClusterNodes
            | Id::ClusterShards
            | Id::ClusterSlots
            | Id::Readonly
            | Id::Readwrite => self.no_cluster(),
            Id::Auth => self.auth(),
            Id::ClientCaching => self.client_caching(),
            Id::ClientConsistency => self.client_consistency(),
            Id::ClientDurability => self.client_durability(),
            Id::ClientGetname => self.client_getname(),
            Id::ClientGetredir => self.client_getredir(),
            Id::ClientId => self.client_id(),
            Id::ClientInfo => self.client_info(),
            Id::ClientKill | Id::ClientList | Id::ClientUnpause => self.ask(),
            Id::ClientNoEvict => self.client_no_evict(),
            Id::ClientNoTouch => self.client_no_touch(),
            Id::ClientPause => self.client_pause(),
            Id::ClientReply => self.client_reply(),
            Id::ClientSetinfo => self.client_setinfo(),
            Id::ClientSetname => self.client_setname(),
            Id::ClientTracking => self.client_tracking(),
            Id::ClientTrackinginfo => self.client_trackinginfo(),
            Id::ClientUnblock => self.client_unblock(),
            Id::Command => self.command_all(),
            Id::CommandCount => self.command_count(),
            Id::CommandDocs => self.command_docs(),
            Id::CommandGetkeys => self.command_getkeys(),
            Id::CommandGetkeysandflags => self.command_getkeysandflags(),
            Id::CommandInfo => self.command_info(),
            Id::CommandList => self.command_list(),
            Id::ConfigGet => self.config_get(),
            Id::ConfigResetstat => self.config_resetstat(),
            Id::ConfigRewrite => self.config_rewrite(),
            Id::ConfigSet => self.config_set(),
            Id::Debug => self.debug(),
            Id::ClientHelp
            | Id::CommandHelp
            | Id::ConfigHelp
            | Id::FunctionHelp
            | Id::LatencyHelp
            | Id::MemoryHelp
            | Id::ObjectHelp
            | Id::ScriptHelp
            | Id::SlowlogHelp => self.help(),
            // Their arity demands a subcommand, which has a row of its own.
            Id::Acl
            | Id::Client
            | Id::Cluster
            | Id::Config
            | Id::Function
            | Id::Latency
            | Id::Memory
            | Id::Module
            | Id::Object
            | Id::Script
            | Id::Slowlog => Err(error::wrong_arity(self.command.name)),
            Id::Discard => self.discard(),
            Id::Echo => self.echo(),
            Id::FunctionDelete => self.function_delete(),
            Id::FunctionFlush | Id::ScriptFlush => self.scripts_flush(),
            Id::FunctionKill | Id::ScriptKill => self.scripts_kill(),
            Id::FunctionList => self.function_list(),
            Id::FunctionStats => self.function_stats(),
            Id::Hello => self.hello(),
            Id::Info => self.info(),
            Id::Lastsave => self.lastsave(),
            Id::LatencyDoctor => self.latency_doctor(),
            Id::LatencyGraph => self.latency_graph(),
            Id::LatencyHistogram => self.latency_histogram(),
            Id::LatencyHistory => self.latency_history(),
            Id::LatencyLatest => self.latency_latest(),
            Id::LatencyReset => self.latency_reset(),
            Id::MemoryDoctor => self.memory_doctor(),
            Id::MemoryMallocStats => self.memory_malloc_stats(),
            Id::MemoryPurge => self.memory_purge(),
            Id::MemoryStats => self.memory_stats(),
            Id::ModuleList => self.module_list(),
            Id::Multi => self.multi(),
            Id::Ping => self.ping(),
            Id::Quit => self.quit(),
            Id::Reset => self.reset(),
            Id::Role => self.role(),
            Id::ScriptExists => self.script_exists(),
            Id::Select => self.select(),
            Id::SlowlogGet => self.slowlog_get(),
            Id::SlowlogLen => self.slowlog_len(),
            Id::SlowlogReset => self.slowlog_reset(),
            Id::Time => self.time(),
            Id::Unwatch => self.unwatch(),
            Id::Wait => self.wait(),
            _ => Err(error::MISROUTED),
        }
    }

    /// Returns an argument that the arity check has proved to be there.
    pub fn arg(&self, index: usize) -> &'a [u8] {
        self.request.get(index).unwrap_or(&[])
    }

    /// Returns an argument as an integer.
    pub fn int_arg(&self, index: usize) -> Outcome<i64> {
        atoll_resp::number::parse_i64(self.arg(index)).ok_or(error::NOT_AN_INTEGER)
    }

    /// Returns whether an argument is this word, whatever its case.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Returns a writer for the client's protocol.
    pub fn reply(&mut self) -> ReplyWriter<'_> {
        self.session.reply()
    }
}
