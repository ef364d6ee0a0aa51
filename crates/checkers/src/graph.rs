//! Graphs of transactions and the cycles in them.
//!
//! An edge says "must come before" and carries the kinds of reasons for it as bits. A cycle is a
//! contradiction; how bad it is depends on the reasons it takes (Adya 1999, Cerone et al. 2015):
//!
//! | shape | edges of the cycle |
//! |---|---|
//! | G0 | only `ww` |
//! | G1c | `ww` and at least one `wr` |
//! | G-single | exactly one `rw` |
//! | G-nonadjacent | several `rw`, no two in a row: not even snapshot isolation allows it |
//! | G2 | two `rw` in a row somewhere: write skew |
//!
//! Whether there is a cycle is asked in linear time, of strongly connected components (Tarjan, with
//! a stack of its own: histories are deep). "No two `rw` in a row" is asked of a graph with two
//! copies of each vertex, one entered by an `rw` and one not. Only then an example is looked for,
//! by breadth-first search, as short as a bounded effort finds.

use atoll_encoding::hash::HashSet;

/// Reasons for an edge, as bits.
pub mod kind {
    /// Both wrote the same key, one after the other.
    pub const WW: u8 = 1;
    /// One read what the other wrote.
    pub const WR: u8 = 2;
    /// One did not see what the other wrote.
    pub const RW: u8 = 4;
    /// Both are of one process.
    pub const PROCESS: u8 = 8;
    /// One ended before the other began.
    pub const REALTIME: u8 = 16;
}

use kind::RW;

/// An edge from a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The vertex that comes later.
    pub to: u32,
    /// Why.
    pub kinds: u8,
}

/// A graph whose vertices are `0..len`.
#[derive(Clone, Debug)]
pub struct Graph {
    starts: Vec<u32>,
    edges: Vec<Edge>,
}

/// An edge of a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The earlier vertex.
    pub from: u32,
    /// The later vertex.
    pub to: u32,
    /// The reason that counts in this cycle.
    pub kind: u8,
}

impl Graph {
    /// Builds a graph of `len` vertices from edges in any order, which may repeat and loop.
    pub fn new(len: usize, mut list: Vec<(u32, u32, u8)>) -> Graph {
        list.retain(|(from, to, _)| from != to);
        list.sort_unstable();
        let mut starts = vec![0; len + 1];
        let mut edges: Vec<Edge> = Vec::with_capacity(list.len());
        let mut last = None;
        for (from, to, kinds) in list {
            match edges.last_mut().filter(|_| last == Some((from, to))) {
                Some(edge) => edge.kinds |= kinds,
                None => {
                    edges.push(Edge { to, kinds });
                    starts[from as usize + 1] += 1;
                }
            }
            last = Some((from, to));
        }
        for at in 0..len {
            starts[at + 1] += starts[at];
        }
        Graph { starts, edges }
    }

    /// Returns the number of vertices.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns whether there are no vertices.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of edges.
    pub fn edges(&self) -> usize {
        self.edges.len()
    }

    /// Returns the edges that leave a vertex.
    pub fn from(&self, vertex: u32) -> &[Edge] {
        &self.edges
            [self.starts[vertex as usize] as usize..self.starts[vertex as usize + 1] as usize]
    }

    /// Returns all edges with any of `kinds`.
    pub fn all(&self, kinds: u8) -> impl Iterator<Item = (u32, Edge)> + '_ {
        (0..self.len() as u32).flat_map(move |from| {
            let edges = self.from(from).iter().filter(move |edge| edge.kinds & kinds != 0);
            edges.map(move |edge| (from, *edge))
        })
    }

    /// Returns the component of each vertex in the graph of edges with any of `kinds`.
    pub fn components(&self, kinds: u8) -> Components {
        Components::new(self.len(), |vertex, at| {
            let edge = self.from(vertex).get(at)?;
            Some((edge.kinds & kinds != 0).then_some(edge.to))
        })
    }

    /// Returns the component of each copy of each vertex (`2 * vertex + 1` was entered by an `rw`)
    /// in the graph whose walks use edges of `others` and `rw`, never two `rw` in a row.
    pub fn nonadjacent_components(&self, others: u8) -> Components {
        Components::new(2 * self.len(), |copy, at| {
            let (vertex, by_rw) = (copy / 2, copy % 2 == 1);
            // Each edge is offered twice: as one of the others, and as an rw.
            let edge = self.from(vertex).get(at / 2)?;
            Some(if at % 2 == 0 {
                (edge.kinds & others != 0).then_some(2 * edge.to)
            } else {
                (edge.kinds & RW != 0 && !by_rw).then_some(2 * edge.to + 1)
            })
        })
    }

    /// Returns a shortest way back from the end of the edge `closing` to its start, so that both
    /// make a cycle. Looks at up to `effort` edges and uses them up.
    pub fn way_back(&self, closing: Hop, walk: Walk, effort: &mut usize) -> Option<Vec<Hop>> {
        struct Place {
            hop: Hop,
            parent: usize,
        }
        let in_a_row = |kind: u8, next: u8| walk.rw == Rw::NotInARow && kind & next == RW;
        let mut places = vec![Place { hop: closing, parent: usize::MAX }];
        let mut visited: HashSet<(u32, bool)> = HashSet::default();
        let mut at = 0;
        while at < places.len() {
            let before = places[at].hop;
            for edge in self.from(before.to) {
                *effort = effort.checked_sub(1)?;
                let others = edge.kinds & walk.others;
                // The most telling reason has the lowest bit.
                let kind =
                    if others != 0 { others & others.wrapping_neg() } else { edge.kinds & RW };
                let allowed = kind != 0 && (kind != RW || walk.rw != Rw::Never);
                if !allowed || in_a_row(before.kind, kind) {
                    continue;
                }
                let hop = Hop { from: before.to, to: edge.to, kind };
                if edge.to == closing.from && !in_a_row(kind, closing.kind) {
                    let mut cycle = vec![hop];
                    let mut back = at;
                    while back != usize::MAX {
                        cycle.push(places[back].hop);
                        back = places[back].parent;
                    }
                    cycle.reverse();
                    return Some(cycle);
                }
                if visited.insert((edge.to, kind == RW)) {
                    places.push(Place { hop, parent: at });
                }
            }
            at += 1;
        }
        None
    }
}

/// Whether a walk may use `rw` edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// None.
    Never,
    /// No two one after the other, the closing edge included.
    NotInARow,
    /// Any.
    Always,
}

/// What a walk may use.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Kinds of edges besides `rw`.
    pub others: u8,
    /// The `rw` edges.
    pub rw: Rw,
}

/// Strongly connected components.
#[derive(Clone, Debug)]
pub struct Components {
    /// By vertex.
    number: Vec<u32>,
    /// By component.
    sizes: Vec<u32>,
}

impl Components {
    /// Tarjan's algorithm. `edge(v, n)` returns the end of the n-th edge of `v`, `Some(None)` if
    /// that edge does not count, `None` if there are no more.
    fn new(len: usize, edge: impl Fn(u32, usize) -> Option<Option<u32>>) -> Components {
        const UNSEEN: u32 = u32::MAX;
        let mut number = vec![UNSEEN; len];
        let mut sizes = Vec::new();
        let mut order = vec![UNSEEN; len];
        let mut low = vec![0; len];
        let mut next_order = 0;
        let mut open: Vec<u32> = Vec::new();
        let mut calls: Vec<(u32, usize)> = Vec::new();
        for root in 0..len as u32 {
            if order[root as usize] != UNSEEN {
                continue;
            }
            calls.push((root, 0));
            while let Some((vertex, at)) = calls.last_mut() {
                let v = *vertex as usize;
                if *at == 0 && order[v] == UNSEEN {
                    (order[v], low[v]) = (next_order, next_order);
                    next_order += 1;
                    open.push(*vertex);
                }
                let next = edge(*vertex, *at);
                *at += 1;
                match next {
                    Some(Some(to)) if order[to as usize] == UNSEEN => calls.push((to, 0)),
                    Some(Some(to)) if number[to as usize] == UNSEEN => {
                        low[v] = low[v].min(order[to as usize]);
                    }
                    Some(_) => {}
                    None => {
                        calls.pop();
                        if let Some((parent, _)) = calls.last() {
                            low[*parent as usize] = low[*parent as usize].min(low[v]);
                        }
                        if low[v] == order[v] {
                            let component = sizes.len() as u32;
                            let mut size = 0;
                            while let Some(member) = open.pop() {
                                number[member as usize] = component;
                                size += 1;
                                if member as usize == v {
                                    break;
                                }
                            }
                            sizes.push(size);
                        }
                    }
                }
            }
        }
        Components { number, sizes }
    }

    /// Returns whether both vertices lie on a cycle together, or on cycles that are connected.
    pub fn together(&self, a: u32, b: u32) -> bool {
        self.number[a as usize] == self.number[b as usize]
    }

    /// Returns whether there is a cycle at all.
    pub fn cyclic(&self) -> bool {
        self.sizes.iter().any(|size| *size > 1)
    }

    /// Returns the number of the component of a vertex.
    pub fn of(&self, vertex: u32) -> u32 {
        self.number[vertex as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::kind::{REALTIME, WR, WW};
    use super::*;

    fn hop(from: u32, to: u32, kind: u8) -> Hop {
        Hop { from, to, kind }
    }

    #[test]
    fn edges_are_merged_and_loops_ignored() {
        let graph = Graph::new(3, vec![(0, 1, WW), (2, 2, WW), (0, 1, RW), (1, 2, WR)]);
        assert_eq!(graph.from(0), [Edge { to: 1, kinds: WW | RW }]);
        assert_eq!((graph.len(), graph.edges()), (3, 2));
        assert!(!graph.components(255).cyclic());
    }

    #[test]
    fn components_follow_only_the_kinds_asked_for() {
        let graph = Graph::new(5, vec![(0, 1, WW), (1, 2, WW), (2, 0, WR), (3, 4, WW), (2, 3, WW)]);
        let all = graph.components(WW | WR);
        assert!(all.cyclic() && all.together(0, 2) && !all.together(2, 3));
        assert!(!graph.components(WW).cyclic());
    }

    #[test]
    fn a_long_chain_does_not_overflow_the_stack() {
        let len = 200_000;
        let mut edges: Vec<_> = (1..len).map(|at| (at - 1, at, WW)).collect();
        edges.push((len - 1, 0, RW));
        assert!(Graph::new(len as usize, edges).components(WW | RW).cyclic());
    }

    #[test]
    fn two_rw_in_a_row_are_told_from_two_that_are_apart() {
        let skew = Graph::new(2, vec![(0, 1, RW), (1, 0, RW)]);
        assert!(skew.components(RW).cyclic());
        assert!(!skew.nonadjacent_components(WW | WR).cyclic());
        let fork = Graph::new(4, vec![(0, 1, RW), (1, 2, WW), (2, 3, RW), (3, 0, WR)]);
        assert!(fork.nonadjacent_components(WW | WR).cyclic());
        assert!(!fork.nonadjacent_components(WW).cyclic());
        let single = Graph::new(2, vec![(0, 1, RW), (1, 0, REALTIME)]);
        assert!(single.nonadjacent_components(REALTIME).cyclic());
    }

    #[test]
    fn ways_back_are_short_and_keep_the_rules() {
        let edges = vec![(0, 1, RW), (1, 2, WW), (2, 0, WR), (1, 3, RW), (3, 0, RW)];
        let graph = Graph::new(4, edges);
        let mut effort = 1000;
        let back =
            graph.way_back(hop(0, 1, RW), Walk { others: WW | WR, rw: Rw::Never }, &mut effort);
        assert_eq!(back, Some(vec![hop(0, 1, RW), hop(1, 2, WW), hop(2, 0, WR)]));
        let none =
            graph.way_back(hop(0, 1, RW), Walk { others: WW, rw: Rw::NotInARow }, &mut effort);
        assert_eq!(none, None);
        let skew = graph.way_back(hop(0, 1, RW), Walk { others: WW, rw: Rw::Always }, &mut effort);
        assert_eq!(skew, Some(vec![hop(0, 1, RW), hop(1, 3, RW), hop(3, 0, RW)]));
        assert_eq!(
            graph.way_back(hop(0, 1, RW), Walk { others: WW, rw: Rw::Always }, &mut 2),
            None
        );
    }
}
