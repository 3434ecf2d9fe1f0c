/* The asynchronous verification of docs/protocol.md as a model for Spin; `make protocol` checks it and its mutants.
 *
 * Two requests under one anchor share a prefix of two pages, of which the second was computed from the first, and then
 * generate ANSWER tokens each, one a page. A page's content says whose it is and whether the undisturbed run would have
 * written it. FAULTS faults of any kind hit at any moment. Each -DMUTANT_X takes one rule out; the table is in check.py.
 */
#ifndef ANSWER
#define ANSWER 3      /* tokens of an answer */
#endif
#ifndef FAULTS
#define FAULTS 2      /* faults in a run */
#endif
#ifndef CAP
#define CAP 2         /* provisional tokens of a request */
#endif
#ifndef MAX_FAULTS
#define MAX_FAULTS 3  /* passes in a row that may find something */
#endif
#define REQUESTS 2

/* What a request depends on: the anchor, the prefix's two pages, its own pages. Where they lie: PLACES. */
#define ANCHOR 0
#define PREFIX 2
#define OWN(r, i) (1 + PREFIX + (r) * ANSWER + (i))
#define PLACES OWN(REQUESTS, 0)
#define LOOKS (PREFIX + ANSWER) /* pages that a pass looks at for a request, besides the anchor */
#define PAGE(r, k) ((k) < PREFIX -> 1 + (k) : OWN(r, (k) - PREFIX))

/* Contents of a place. Damage is never the content of a page that somebody bound. */
#define DAMAGE 0
#define RIGHT(id) (2 * (id) + 2)
#define WRONG(id) (2 * (id) + 3)
#define BAD(id) (memory[table[id]] != RIGHT(id))    /* what computing reads */
#define DIFFERS(id) (memory[table[id]] != bound[id]) /* what a check sees */

byte memory[PLACES];     /* what lies there */
byte references[PLACES]; /* the pool's counts */
byte table[PLACES];      /* by page: its place */
bit lost[PLACES];        /* by page: its place was freed behind the request's back */
byte bound[PLACES];      /* by page: what its digest stands for, in host memory; 0: nothing yet */

byte generated[REQUESTS], committed[REQUESTS], in_log[REQUESTS];
bit finished[REQUESTS];
bit running, alarm, gave_up;
byte failed_passes;
byte faults = FAULTS, early = 1;

/* The job in flight: written by the loop at submission, then by the device and the worker, read by the loop when done. */
mtype = { idle, submitted, hashed, appending, hung, answered, done, dead };
mtype = { kept, refused, lied };
mtype stage = idle;
mtype answer;
byte upto[REQUESTS];      /* tokens at submission */
bit job[REQUESTS], clean[REQUESTS];
bit anchor_damaged, log_error;
byte damaged[REQUESTS];   /* bit k: look k found damage */
byte cursor;              /* the next look */
bit mute;                 /* the log that hangs will never answer */
byte orphan[REQUESTS];    /* what the append of a given-up worker may still add */
bit leased[PLACES];
#ifdef MUTANT_BACK_TO_SUBMISSION
byte from[REQUESTS];
#endif
#ifdef MUTANT_NO_RETRY
bit dropped;
#endif

/* Ghosts: nobody in the protocol reads them. */
byte told[REQUESTS];      /* the highest horizon that was ever announced */
byte released[REQUESTS];  /* tokens that effects have left from */
bit unread[PLACES];       /* the job in flight has yet to look at this place */
bit reused;               /* such a place was given to somebody else */
bit known_damage;         /* a pass has reported that the anchor is damaged, and it is not rewritten yet */
bit computed_on_damage;   /* a row was computed then, or under an alarm */
bit wrong_leaf;           /* a leaf of a wrong token was handed to the log */

#define IS_RIGHT(r, i, count) (count <= i || bound[OWN(r, i)] == RIGHT(OWN(r, i)))
#if ANSWER == 3
#define ALL_RIGHT(r, n) (IS_RIGHT(r, 0, n) && IS_RIGHT(r, 1, n) && IS_RIGHT(r, 2, n))
#else
#define ALL_RIGHT(r, n) (IS_RIGHT(r, 0, n) && IS_RIGHT(r, 1, n))
#endif
#define I1 (ALL_RIGHT(0, committed[0]) && ALL_RIGHT(1, committed[1]))
#define I2 (committed[0] >= told[0] && committed[1] >= told[1])
#define I4 (generated[0] <= committed[0] + CAP && generated[1] <= committed[1] + CAP)
#define I5 (released[0] <= committed[0] && released[1] <= committed[1])
#define I6 (!reused)
#define I7 (!computed_on_damage)
#define I8 (committed[0] <= in_log[0] && committed[1] <= in_log[1])
#define I9 (!wrong_leaf)

ltl safe { [] (I1 && I2 && I4 && I5 && I6 && I7 && I8 && I9) }
ltl i1 { [] I1 }
ltl i2 { [] I2 }
ltl i3 { <> (finished[0] && finished[1]) }
ltl i4 { [] I4 }
ltl i5 { [] I5 }
ltl i6 { [] I6 }
ltl i7 { [] I7 }
ltl i8 { [] I8 }
ltl i9 { [] I9 }

/* place = a free one, now taken. */
inline allocate(place) {
    place = 1 + PREFIX;
    do
    :: references[place] > 0 -> place++
    :: else -> break
    od;
    references[place] = 1;
    reused = reused || unread[place];
}

/* One reference less. A place without any is free, and whoever still has it in a table has lost it. */
inline drop(place, holder) {
    references[place]--;
    for (other : OWN(0, 0) .. OWN(REQUESTS, 0) - 1) {
        lost[other] = lost[other] || (references[place] == 0 && table[other] == place && other != holder)
    }
    other = 0
}

/* The request gives a page up; one that it has lost is not given back again. */
inline release(id) {
    if
    :: !lost[id] -> drop(table[id], id)
    :: else
    fi;
    lost[id] = 0;
    table[id] = 0;
    bound[id] = 0
}

/* bad = whether something that page `id` of request r is computed from is not what it should be. */
inline read_all(r, id, bad) {
    bad = BAD(ANCHOR);
    for (k : 0 .. PREFIX + id - OWN(r, 0) - 1) {
        bad = bad || BAD(PAGE(r, k))
    }
    k = 0
}

/* One token, and the page that its step writes, bound to what was found there right after the step. */
inline step(r) {
    id = OWN(r, generated[r]);
    read_all(r, id, bad);
    allocate(place);
    table[id] = place;
    memory[place] = RIGHT(id) + bad;
    bound[id] = RIGHT(id) + bad;
    generated[r]++;
    printf("loop: token %d of request %d in place %d, wrong %d\n", generated[r], r, place, bad);
    computed_on_damage = computed_on_damage || known_damage || alarm || waiting;
#ifdef MUTANT_RELEASE_PROVISIONAL
    released[r] = (generated[r] > released[r] -> generated[r] : released[r]);
#endif
    id = 0; place = 0; bad = 0
}

/* Lost pages get another place, which is wiped: an old copy may lie there, and would pass for what was read. */
inline replace_lost() {
    for (id : OWN(0, 0) .. OWN(REQUESTS, 0) - 1) {
        if
        :: lost[id] ->
            lost[id] = 0;
            allocate(place);
            table[id] = place;
#ifndef MUTANT_UNWIPED
            memory[place] = DAMAGE;
#endif
            if
            :: id < OWN(1, 0) -> found[0] = found[0] | (1 << (PREFIX + id - OWN(0, 0)))
            :: else -> found[1] = found[1] | (1 << (PREFIX + id - OWN(1, 0)))
            fi;
            printf("loop: page %d was lost, and lies in place %d now\n", id, place)
        :: else
        fi
    }
    id = 0; place = 0
}

/* A pass looks after the tokens of its job were computed. The mutant takes what was seen before the first of them. */
#ifdef MUTANT_HASH_FIRST
bit seen_anchor;
byte seen[REQUESTS];
#endif

inline look_at(r) {
    for (k : 0 .. LOOKS - 1) {
        if
        :: job[r] && k < PREFIX + upto[r] ->
            damaged[r] = damaged[r] | ((DIFFERS(PAGE(r, k)) -> 1 : 0) << k);
            unread[table[PAGE(r, k)]] = 0
        :: else
        fi
    }
    k = 0
}

inline submit(everything) {
#ifndef MUTANT_KEEP_LOST
    replace_lost();
    found[0] = 0; found[1] = 0;
#endif
    for (r : 0 .. REQUESTS - 1) {
#ifdef MUTANT_BACK_TO_SUBMISSION
        from[r] = committed[r];
#endif
        job[r] = !finished[r] && (everything || generated[r] > committed[r]);
        upto[r] = (job[r] -> generated[r] : 0);
        damaged[r] = 0;
        clean[r] = 0;
        for (k : 0 .. ANSWER - 1) {
            if
            :: job[r] && k < upto[r] ->
                unread[table[OWN(r, k)]] = 1;
#ifndef MUTANT_NO_LEASE
                leased[table[OWN(r, k)]] = 1;
                references[table[OWN(r, k)]]++
#endif
            :: else
            fi
        }
#ifdef MUTANT_COMMIT_AT_SUBMISSION
        if
        :: job[r] -> committed[r] = upto[r]; told[r] = upto[r]
        :: else
        fi
#endif
    }
    r = 0; k = 0;
    anchor_damaged = 0; log_error = 0; cursor = 0;
    printf("loop: submits %d of request 0, %d of request 1\n", upto[0], upto[1]);
#ifdef MUTANT_HASH_FIRST
    anchor_damaged = seen_anchor; damaged[0] = seen[0]; damaged[1] = seen[1];
    stage = hashed
#else
    stage = submitted
#endif
}

inline end_lease() {
    for (place : 1 + PREFIX .. PLACES - 1) {
        if
        :: leased[place] -> leased[place] = 0; drop(place, 0)
        :: else
        fi;
        unread[place] = 0
    }
    place = 0
}

/* The worker of the job is dead or waits for a log that does not answer: another one takes its place. */
inline give_up() {
    for (r : 0 .. REQUESTS - 1) {
        if
        :: stage == hung && clean[r] && !mute && upto[r] > orphan[r] -> orphan[r] = upto[r]
        :: else
        fi;
        clean[r] = 0;
        damaged[r] = 0
    }
    r = 0;
    anchor_damaged = 0;
    mute = 0;
    log_error = 1;
    printf("loop: gives the worker up\n")
}

/* The result: the horizon moves over what was clean. back[r]: the request must go back. */
inline receive() {
    end_lease();
    if
    :: anchor_damaged || damaged[0] != 0 || damaged[1] != 0 || log_error ->
        dirty = 1;
        skip;
#ifndef MUTANT_KEEP_LOST
        replace_lost();
        damaged[0] = damaged[0] | found[0]; damaged[1] = damaged[1] | found[1];
        found[0] = 0; found[1] = 0
#endif
    :: else
    fi;
    progress = 0;
    for (r : 0 .. REQUESTS - 1) {
        if
        :: clean[r] && !log_error && upto[r] > committed[r] -> committed[r] = upto[r]; progress = 1
        :: else
        fi;
        told[r] = (committed[r] > told[r] -> committed[r] : told[r]);
        released[r] = (committed[r] > released[r] -> committed[r] : released[r]);
        back[r] = !finished[r] && (damaged[r] != 0 || (log_error && job[r]))
    }
#ifndef MUTANT_ONLY_THE_FINDER
    for (r : 0 .. REQUESTS - 1) {
        /* whoever holds a damaged page may have read it, in this job or not */
        back[r] = back[r] || (!finished[r] && (anchor_damaged || (((damaged[0] | damaged[1]) & 3) != 0)));
        for (k : 0 .. ANSWER - 1) {
            for (id : OWN(0, 0) .. OWN(REQUESTS, 0) - 1) {
                if
                :: (damaged[r] >> (PREFIX + k)) & 1 && table[id] == table[OWN(r, k)] && table[id] != 0 ->
                    back[(id < OWN(1, 0) -> 0 : 1)] = 1
                :: else
                fi
            }
        }
    }
#endif
    r = 0; k = 0; id = 0;
    for (r : 0 .. REQUESTS - 1) {
        if
        :: committed[r] == ANSWER && !finished[r] ->
            for (k : 0 .. ANSWER - 1) {
                place = bound[OWN(r, k)];
                release(OWN(r, k));
                bound[OWN(r, k)] = place /* the tokens stay, the pages go */
            }
            finished[r] = 1;
            back[r] = 0
        :: else
        fi
    }
    r = 0; k = 0; place = 0;
    printf("loop: receives; committed %d and %d; damaged: anchor %d, %d, %d; log error %d\n", committed[0], committed[1],
        anchor_damaged, damaged[0], damaged[1], log_error);
    stage = idle;
    known_damage = anchor_damaged;
#ifdef MUTANT_NO_RETRY
    dropped = log_error;
#endif
    if
    :: dirty -> failed_passes++
    :: !dirty && progress -> failed_passes = 0
    :: else
    fi;
    gave_up = gave_up || failed_passes > MAX_FAULTS
}

inline roll_back(r) {
#ifdef MUTANT_BACK_TO_SUBMISSION
    committed[r] = (job[r] -> from[r] : committed[r]);
#endif
    for (k : 0 .. ANSWER - 1) {
        if
        :: k >= committed[r] && k < generated[r] -> release(OWN(r, k))
        :: else
        fi
    }
    k = 0;
    printf("loop: request %d goes back to %d\n", r, committed[r]);
    generated[r] = committed[r]
}

/* Nothing of a job that was received is read again: without this, states differ by it. */
inline forget_job() {
    for (r : 0 .. REQUESTS - 1) {
        job[r] = 0; upto[r] = 0; clean[r] = 0; damaged[r] = 0; back[r] = 0
    }
    r = 0; anchor_damaged = 0; log_error = 0; progress = 0;
#ifdef MUTANT_HASH_FIRST
    seen_anchor = DIFFERS(ANCHOR); seen[0] = 0; seen[1] = 0;
    for (r : 0 .. REQUESTS - 1) {
        for (k : 0 .. PREFIX + generated[r] - 1) {
            if
            :: !finished[r] && DIFFERS(PAGE(r, k)) -> seen[r] = seen[r] | (1 << k)
            :: else
            fi
        }
    }
    r = 0; k = 0
#endif
}

/* Page k of request r is computed again from committed tokens, and written if that is what is bound to it. */
#define REBUILDS(r, k) (((damaged[r] >> (k)) & 1) && ((k) < PREFIX || (k) - PREFIX < committed[r]) && !finished[r])
inline rebuild(r, k0) {
    id = PAGE(r, k0);
    if
    :: k0 < PREFIX -> bad = BAD(ANCHOR) || (k0 == 1 && BAD(1))
    :: else -> read_all(r, id, bad)
    fi;
    if
    :: RIGHT(id) + bad == bound[id] -> memory[table[id]] = bound[id]; printf("loop: page %d is rebuilt\n", id)
    :: else
#ifdef MUTANT_REBUILD_ONCE
        -> gave_up = 1
#endif
    fi;
    id = 0; bad = 0
}

inline recover() {
#ifndef MUTANT_REWRITE_LATER
    d_step {
        if
        :: anchor_damaged -> memory[ANCHOR] = RIGHT(ANCHOR); known_damage = 0; printf("loop: rewrites the anchor\n")
        :: else
        fi
    }
#endif
    look = 0;
    do
    :: d_step { (look < REQUESTS * LOOKS) ->
        for (number : look .. REQUESTS * LOOKS - 1) { /* the next one, and only that */
            if
            :: look == number && !REBUILDS(look / LOOKS, look % LOOKS) -> look++
            :: else
            fi
        }
        if
        :: look < REQUESTS * LOOKS -> rebuild((look / LOOKS), (look % LOOKS)); look++
        :: else
        fi;
        number = 0 }
    :: (look == REQUESTS * LOOKS) -> break
    od;
    look = 0;
    d_step {
        for (r : 0 .. REQUESTS - 1) {
            if
            :: back[r] -> roll_back(r)
            :: else
            fi;
            back[r] = 0
        }
        r = 0
    }
}

#ifdef MUTANT_NO_CAP
#define BELOW_CAP(r) true
#else
#define BELOW_CAP(r) (generated[r] < committed[r] + CAP)
#endif
#ifdef MUTANT_IGNORE_ALARM
#define CALM true
#else
#define CALM (!alarm && !waiting)
#endif
#ifdef MUTANT_NO_RETRY
#define MAY_SUBMIT (!dropped)
#else
#define MAY_SUBMIT true
#endif
#define MAY_STEP(r) (CALM && generated[r] < ANSWER && BELOW_CAP(r))

active proctype Loop() {
    byte r, k, id, other, place, number, look;
    byte found[REQUESTS];
    bit bad, progress, dirty, waiting;
    bit back[REQUESTS];

    /* prefill: what is shared was checked after the last pass that read it, or it is not shared */
    d_step { table[1] = 1; table[2] = 2; memory[ANCHOR] = RIGHT(ANCHOR); bound[ANCHOR] = RIGHT(ANCHOR) }
prefill: skip;
    d_step { bad = BAD(ANCHOR); memory[1] = RIGHT(1) + bad; bound[1] = memory[1]; bad = 0 }
    d_step { bad = BAD(ANCHOR) || BAD(1); memory[2] = RIGHT(2) + bad; bound[2] = memory[2]; bad = 0 }
    if
    :: d_step { BAD(ANCHOR) -> memory[ANCHOR] = RIGHT(ANCHOR) }; goto prefill
#ifndef MUTANT_PREFIX_UNCHECKED
    :: !BAD(ANCHOR) && (DIFFERS(1) || DIFFERS(2)) -> goto prefill
    :: !BAD(ANCHOR) && !DIFFERS(1) && !DIFFERS(2)
#else
    :: !BAD(ANCHOR)
#endif
    fi;

    running = 1;
    do
    :: (finished[0] && finished[1]) -> running = 0; break
    :: d_step { MAY_STEP(0) -> step(0) }
    :: d_step { MAY_STEP(1) -> step(1) }
    :: d_step { (stage == idle && !alarm && MAY_SUBMIT && (generated[0] > committed[0] || generated[1] > committed[1])) ->
        submit(0) }
#ifdef MUTANT_REWRITE_LATER
    :: d_step { (known_damage) -> memory[ANCHOR] = RIGHT(ANCHOR); known_damage = 0 }
#endif
    :: d_step { (stage == idle && alarm) -> alarm = 0; waiting = 1; submit(1) }
#ifndef MUTANT_NO_TIMEOUT
    :: d_step { stage == hung -> give_up(); stage = done }
#endif
    :: d_step { stage == dead -> give_up(); stage = done }
    :: d_step { stage == done -> receive(); waiting = 0 };
        if
        :: dirty && !gave_up -> recover()
        :: else
        fi;
        if
        :: gave_up -> running = 0; break
        :: else
        fi;
        d_step { forget_job(); dirty = 0 }
    od
}

/* Hashes where the pages lie, one page at a time, beside the loop; and looks at held pages on its own account. */
active proctype Device() {
    byte r, k;
end:
    do
    :: d_step { (stage == submitted && cursor == 0) -> anchor_damaged = DIFFERS(ANCHOR); cursor = 1 }
    :: d_step { (stage == submitted && cursor > 0 && cursor <= REQUESTS) ->
        r = cursor - 1;
        look_at(r);
        stage = (cursor == REQUESTS -> hashed : submitted);
        cursor = (cursor == REQUESTS -> 0 : cursor + 1);
        r = 0 }
    :: d_step { (!alarm && running && (DIFFERS(ANCHOR) || DIFFERS(1) || DIFFERS(2))) -> alarm = 1; printf("device: alarm\n") }
    od
}

/* Judges what the device found, hands leaves and abort entries to the log, believes the answer only if it follows. */
#ifdef MUTANT_COMMIT_UNCHECKED
#define PASSES(r) true
#else
#define PASSES(r) (!anchor_damaged && damaged[r] == 0)
#endif

#ifdef MUTANT_APPEND_FIRST
#define HANDED(r) job[r]
#else
#define HANDED(r) clean[r]
#endif

active proctype Worker() {
    byte r;
end:
    do
    :: d_step { stage == hashed ->
        for (r : 0 .. REQUESTS - 1) {
            clean[r] = job[r] && PASSES(r)
        }
        stage = (job[0] || job[1] -> appending : done);
        wrong_leaf = wrong_leaf || (HANDED(0) && !ALL_RIGHT(0, upto[0])) || (HANDED(1) && !ALL_RIGHT(1, upto[1]));
        r = 0 }
    :: d_step { stage == answered ->
#ifdef MUTANT_BELIEVE_THE_LOG
        log_error = (answer == refused);
#else
        log_error = (answer != kept);
#endif
        answer = 0;
        stage = done }
    od
}

inline keep(r, count) {
    in_log[r] = (count > in_log[r] -> count : in_log[r])
}

inline keep_job() {
    if
    :: HANDED(0) -> keep(0, upto[0])
    :: else
    fi;
    if
    :: HANDED(1) -> keep(1, upto[1])
    :: else
    fi
}

active proctype Log() {
end:
    do
    :: atomic { stage == appending ->
        if
        :: keep_job(); answer = kept; stage = answered
        :: faults > 0 -> faults--; answer = refused; stage = answered; printf("FAULT: the log refuses\n")
        :: faults > 0 -> faults--; keep_job(); answer = refused; stage = answered; printf("FAULT: the log keeps and refuses\n")
        :: faults > 0 -> faults--; answer = lied; stage = answered; printf("FAULT: the log lies\n")
        :: faults > 0 -> faults--; stage = hung; printf("FAULT: the log hangs\n")
        :: faults > 0 -> faults--; stage = hung; mute = 1; printf("FAULT: the log hangs and never answers\n")
        fi }
    :: d_step { (stage == hung && !mute) -> keep_job(); answer = kept; stage = answered } /* late, and still in time */
    :: d_step { orphan[0] + orphan[1] > 0 -> /* too late */
        keep(0, orphan[0]); keep(1, orphan[1]); orphan[0] = 0; orphan[1] = 0;
#ifdef MUTANT_LATE_ANSWER
        answer = (stage == hung || stage == appending -> kept : 0);
        stage = (stage == hung || stage == appending -> answered : stage);
#endif
        skip }
    od
}

/* The rest of the world: memory, a page that is released too early, a worker that is killed. */
active proctype Faults() {
    byte id, other;
end:
    do
    :: d_step { (faults > 0 && memory[ANCHOR] == RIGHT(ANCHOR)) -> faults--; memory[ANCHOR] = DAMAGE; printf("FAULT: the anchor\n") }
    :: d_step { (faults > 0 && bound[1] != 0 && memory[1] != DAMAGE) -> faults--; memory[1] = DAMAGE; printf("FAULT: page 1\n") }
    :: d_step { (faults > 0 && bound[2] != 0 && memory[2] != DAMAGE) -> faults--; memory[2] = DAMAGE; printf("FAULT: page 2\n") }
    :: atomic { faults > 0 ->
        select (id : OWN(0, 0) .. OWN(REQUESTS, 0) - 1);
        if
        :: d_step { (table[id] != 0 && memory[table[id]] != DAMAGE) -> faults--; memory[table[id]] = DAMAGE; printf("FAULT: page %d\n", id) }
        :: d_step { (early > 0 && table[id] != 0 && references[table[id]] > 0) ->
            faults--; early--; drop(table[id], 0); printf("FAULT: page %d is released too early\n", id) }
        :: else
        fi;
        id = 0 }
#ifdef MUTANT_SILENT_REPAIR
    :: d_step { (running && memory[ANCHOR] == DAMAGE) -> memory[ANCHOR] = RIGHT(ANCHOR); printf("world: rewrites the anchor\n") }
#endif
    :: d_step { (faults > 0 && (stage == submitted || stage == hashed || stage == answered)) ->
        faults--; answer = 0; stage = dead; printf("FAULT: the worker dies\n") }
    od
}
