//! A worker's subscription: leases by turns from lanes it has seen, sleeps on a token when there is nothing to lease.
//! What a lease does to jobs is `lease.lua`; whose turn it is, `broker/rounds.rs`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::Value;
use futures_util::future::{join_all, try_join_all};
use rand::RngExt as _;
use tokio::time::Instant;

use super::Redis;
use super::hold::{Desk, RedisHold, millis, text};
use super::script::{Script, When};
use super::waker::{Token, Waker};
use super::wire::{Places, Seen, lane_from, lane_text, prefix};
use crate::broker::backend::{Hold as _, LEASE_BYTES, Leased, RawDelivery, Source, Terms, Verdict, Want};
use crate::broker::rounds::{Open, Rounds};
use crate::broker::{LeaseId, Lane_};
use crate::error::{Error, Kind, Result};
use crate::job::{Lane, Queue};
use crate::time::Timestamp;
