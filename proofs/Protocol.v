(* Commit and rollback of docs/protocol.md, as verification.pml has it, for any number of requests, tokens and faults.

   A page is a token. What is left out here: where pages lie, leases and early release, the scrub's alarm, and progress
   (I3, I6, I7); a page that is lost is a page whose content changes. *)
From Coq Require Import Arith Bool Lia.

Inductive page := Anchor | Shared (i : nat) | Own (r i : nat).

Definition page_dec (p q : page) : {p = q} + {p <> q}.
Proof. decide equality; apply Nat.eq_dec. Defined.

(* right: the content that the run without faults gives a page. *)
Record world := World { prefix : nat; cap : nat; right : page -> nat }.

(* What a page is computed from. A token needs all pages below it, so this is also what a pass looks at. *)
Definition reads (w : world) (p q : page) : Prop :=
  match p with
  | Anchor => False
  | Shared i => q = Anchor \/ exists j, j < i /\ q = Shared j
  | Own r i => q = Anchor \/ (exists j, j < prefix w /\ q = Shared j) \/ exists j, j < i /\ q = Own r j
  end.

(* Whose rows may have read a page. *)
Definition holds (p : page) (r : nat) : Prop := match p with Own r' _ => r' = r | _ => True end.

(* The job in flight: tokens at submission, looks taken, damage found; then who is clean, and whether the log is believed.
   Recovering: who goes back, what was found damaged. *)
Inductive phase :=
  | Prefill (n : nat)
  | Idle
  | Looking (upto : nat -> nat) (seen hurt : page -> bool)
  | Judged (upto : nat -> nat) (clean : nat -> bool) (hurt : page -> bool)
  | Answered (upto : nat -> nat) (clean : nat -> bool) (hurt : page -> bool) (believed : bool)
  | Recovering (back : nat -> bool) (hurt : page -> bool).

(* bound: what the digest of a page stands for. told, released, verified are ghosts: the highest horizon that was announced,
   tokens that effects have left from, pages that a pass found as bound since they were written. *)
Record state := State {
  memory : page -> nat;
  bound : page -> nat;
  generated : nat -> nat;
  committed : nat -> nat;
  in_log : nat -> nat;
  told : nat -> nat;
  released : nat -> nat;
  verified : page -> bool;
  stage : phase }.

Definition upd {A} (f : page -> A) (p : page) (v : A) : page -> A := fun q => if page_dec q p then v else f q.
Definition upd_nat (f : nat -> nat) (r v : nat) : nat -> nat := fun k => if k =? r then v else f k.

Definition go (s : state) (x : phase) : state :=
  State (memory s) (bound s) (generated s) (committed s) (in_log s) (told s) (released s) (verified s) x.
Definition write (s : state) (p : page) (v : nat) : state :=
  State (upd (memory s) p v) (bound s) (generated s) (committed s) (in_log s) (told s) (released s)
    (verified s) (stage s).
(* A step writes a page, which is bound to what is found there right after. *)
Definition bind (s : state) (p : page) (v : nat) : state :=
  State (upd (memory s) p v) (upd (bound s) p v) (generated s) (committed s) (in_log s) (told s) (released s)
    (upd (verified s) p false) (stage s).
Definition set_verified (s : state) (v : page -> bool) : state :=
  State (memory s) (bound s) (generated s) (committed s) (in_log s) (told s) (released s) v (stage s).
Definition set_generated (s : state) (g : nat -> nat) : state :=
  State (memory s) (bound s) g (committed s) (in_log s) (told s) (released s) (verified s) (stage s).
Definition set_committed (s : state) (c : nat -> nat) : state :=
  State (memory s) (bound s) (generated s) c (in_log s) (told s) (released s) (verified s) (stage s).
Definition set_log (s : state) (l : nat -> nat) : state :=
  State (memory s) (bound s) (generated s) (committed s) l (told s) (released s) (verified s) (stage s).
Definition set_told (s : state) (t : nat -> nat) : state :=
  State (memory s) (bound s) (generated s) (committed s) (in_log s) t (released s) (verified s) (stage s).
Definition set_released (s : state) (l : nat -> nat) : state :=
  State (memory s) (bound s) (generated s) (committed s) (in_log s) (told s) l (verified s) (stage s).

(* Computed from what is right, a page is right; else it is anything. *)
Definition computes (w : world) (s : state) (p : page) (v : nat) : Prop :=
  v = right w p \/ exists q, reads w p q /\ memory s q <> right w q.

Definition computing (x : phase) : Prop := match x with Prefill _ | Recovering _ _ => False | _ => True end.

(* Each can be taken out; the mutants of protocol/check.py that do so are named. Damage_lasts is about the world. *)
Inductive rule :=
  | Prefix_is_checked  (* PREFIX_UNCHECKED *)
  | Leaves_are_checked (* COMMIT_UNCHECKED *)
  | Readers_go_back    (* ONLY_THE_FINDER *)
  | Repairs_are_open   (* SILENT_REPAIR *)
  | Horizon_is_kept    (* BACK_TO_SUBMISSION *)
  | Log_is_followed    (* BELIEVE_THE_LOG *)
  | Cap_is_kept        (* NO_CAP *)
  | Effects_wait       (* RELEASE_PROVISIONAL *)
  | Damage_lasts.

Inductive step (on : rule -> Prop) (w : world) (s : state) : state -> Prop :=
  | fault p v :
      (on Damage_lasts -> v <> bound s p) ->
      step on w s (write s p v)
  | prefill n v :
      stage s = Prefill n -> n < prefix w -> computes w s (Shared n) v ->
      step on w s (go (bind s (Shared n) v) (Prefill (S n)))
  | prefill_again n :
      stage s = Prefill n ->
      step on w s (go (write s Anchor (bound s Anchor)) (Prefill 0))
  | prefill_done v :
      stage s = Prefill (prefix w) ->
      (on Prefix_is_checked -> forall q, reads w (Shared (prefix w)) q -> memory s q = bound s q) ->
      (forall q, reads w (Shared (prefix w)) q -> v q = true) ->
      step on w s (go (set_verified s v) Idle)
  | token r v :
      computing (stage s) -> (on Cap_is_kept -> generated s r < committed s r + cap w) ->
      computes w s (Own r (generated s r)) v ->
      step on w s (set_generated (bind s (Own r (generated s r)) v) (upd_nat (generated s) r (S (generated s r))))
  | submit upto :
      stage s = Idle -> (forall r, upto r <= generated s r) ->
      step on w s (go s (Looking upto (fun _ => false) (fun _ => false)))
  | look p upto seen hurt :
      stage s = Looking upto seen hurt ->
      let same := memory s p =? bound s p in
      step on w s (go (set_verified s (if same then upd (verified s) p true else verified s))
                      (Looking upto (upd seen p true) (upd hurt p (hurt p || negb same))))
  | judge upto seen hurt clean :
      stage s = Looking upto seen hurt ->
      (on Leaves_are_checked ->
       forall r p, clean r = true -> reads w (Own r (upto r)) p -> seen p = true /\ hurt p = false) ->
      step on w s (go s (Judged upto clean hurt))
  | log_answers upto clean hurt believed l :
      stage s = Judged upto clean hurt -> (forall r, in_log s r <= l r) ->
      (on Log_is_followed -> believed = true -> forall r, clean r = true -> upto r <= l r) ->
      step on w s (go (set_log s l) (Answered upto clean hurt believed))
  | log_grows l : (* a late answer, other people's entries *)
      (forall r, in_log s r <= l r) ->
      step on w s (set_log s l)
  | worker_lost upto : (* the worker died or the log hangs: whatever it found is forgotten *)
      (exists seen hurt, stage s = Looking upto seen hurt) \/ (exists clean hurt, stage s = Judged upto clean hurt) ->
      step on w s (go s (Answered upto (fun _ => false) (fun _ => false) false))
  | receive upto clean hurt believed back :
      stage s = Answered upto clean hurt believed ->
      (on Readers_go_back -> forall p r, hurt p = true -> holds p r -> back r = true) ->
      let c := fun r => if believed && clean r then Nat.max (committed s r) (upto r) else committed s r in
      step on w s (go (set_told (set_committed s c) (fun r => Nat.max (told s r) (c r))) (Recovering back hurt))
  | repair p back hurt :
      stage s = Recovering back hurt -> hurt p = true ->
      step on w s (write s p (bound s p))
  | silent_repair p :
      ~ on Repairs_are_open ->
      step on w s (write s p (bound s p))
  | roll_back back hurt c :
      stage s = Recovering back hurt ->
      (forall r, c r <= committed s r) -> (on Horizon_is_kept -> forall r, c r = committed s r) ->
      step on w s (go (set_generated (set_committed s c) (fun r => if back r then c r else generated s r)) Idle)
  | effect r k :
      (on Effects_wait -> k <= committed s r) ->
      step on w s (set_released s (upd_nat (released s) r (Nat.max (released s r) k))).

Definition initial (w : world) (s : state) : Prop :=
  stage s = Prefill 0 /\ bound s Anchor = right w Anchor /\
  forall r, generated s r = 0 /\ committed s r = 0 /\ told s r = 0 /\ released s r = 0.

Inductive reachable (on : rule -> Prop) (w : world) : state -> Prop :=
  | start s : initial w s -> reachable on w s
  | next s s' : reachable on w s -> step on w s s' -> reachable on w s'.

Definition every (_ : rule) : Prop := True.
Definition without (x y : rule) : Prop := y <> x.

(* A page is right, and was found as bound since it was written. *)
Definition good (w : world) (s : state) (p : page) : Prop := bound s p = right w p /\ verified s p = true.

Definition I1 (w : world) (s : state) : Prop :=
  forall r i, i < committed s r -> good w s (Own r i) /\ forall q, reads w (Own r i) q -> good w s q.
Definition I2 (s : state) : Prop := forall r, told s r <= committed s r.
Definition I4 (w : world) (s : state) : Prop := forall r, generated s r <= committed s r + cap w.
Definition I5 (s : state) : Prop := forall r, released s r <= committed s r.
Definition I8 (s : state) : Prop := forall r, committed s r <= in_log s r.
Definition I9 (w : world) (s : state) : Prop :=
  match stage s with
  | Judged upto clean _ => forall r i, clean r = true -> i < upto r -> bound s (Own r i) = right w (Own r i)
  | _ => True
  end.
Definition safe (w : world) (s : state) : Prop := I1 w s /\ I2 s /\ I4 w s /\ I5 s /\ I8 s /\ I9 w s.

(* The inductive invariant: a wrong page always has a witness among what it was computed from, which is wrong itself or is
   not what it is bound to; and no pass that comes after the step misses it. *)
Definition witness (w : world) (s : state) (q : page) : Prop := bound s q <> right w q \/ memory s q <> bound s q.
Definition justified (w : world) (s : state) (p : page) : Prop :=
  bound s p = right w p \/ exists q, reads w p q /\ witness w s q.
Definition caught (w : world) (s : state) (seen hurt : page -> bool) (p : page) : Prop :=
  bound s p = right w p \/
  exists q, reads w p q /\ (bound s q <> right w q \/ (memory s q <> bound s q /\ (seen q = true -> hurt q = true))).
Definition goes_back (x : phase) (r : nat) : Prop := match x with Recovering back _ => back r = true | _ => False end.

Definition prefix_ok (w : world) (s : state) : Prop :=
  match stage s with
  | Prefill n => n <= prefix w /\ (forall r, generated s r = 0) /\ forall i, i < n -> justified w s (Shared i)
  | _ => good w s Anchor /\ forall j, j < prefix w -> good w s (Shared j)
  end.
Definition job_ok (w : world) (s : state) : Prop :=
  match stage s with
  | Looking upto seen hurt =>
      (forall r, upto r <= generated s r) /\
      forall r i, i < upto r -> caught w s seen hurt (Own r i) /\
        (seen (Own r i) = true -> hurt (Own r i) = false -> verified s (Own r i) = true)
  | Judged upto clean _ =>
      (forall r, upto r <= generated s r) /\ forall r i, clean r = true -> i < upto r -> good w s (Own r i)
  | Answered upto clean _ believed =>
      (forall r, upto r <= generated s r) /\ (forall r i, clean r = true -> i < upto r -> good w s (Own r i)) /\
      (believed = true -> forall r, clean r = true -> upto r <= in_log s r)
  | Recovering back hurt => forall p r, hurt p = true -> holds p r -> back r = true
  | _ => True
  end.

Record invariant (w : world) (s : state) : Prop := {
  inv_anchor : bound s Anchor = right w Anchor;
  inv_prefix : prefix_ok w s;
  inv_final : forall r i, i < committed s r -> good w s (Own r i);
  inv_range : forall r, committed s r <= generated s r <= committed s r + cap w;
  inv_told : forall r, told s r <= committed s r /\ released s r <= committed s r /\ committed s r <= in_log s r;
  inv_tokens : forall r i, i < generated s r -> goes_back (stage s) r \/ justified w s (Own r i);
  inv_job : job_ok w s }.

Lemma upd_same {A} (f : page -> A) p v : upd f p v p = v.
Proof. unfold upd. now destruct (page_dec p p). Qed.

Lemma upd_other {A} (f : page -> A) p v q : q <> p -> upd f p v q = f q.
Proof. unfold upd. now destruct (page_dec q p). Qed.

Lemma justified_fault w s p v x : v <> bound s p -> justified w s x -> justified w (write s p v) x.
Proof.
  intros D [R | (q & Q & W)]; [now left | right]. exists q. split; [exact Q|]. unfold witness in *. simpl.
  destruct (page_dec q p) as [-> | N]; [rewrite upd_same; now right | now rewrite upd_other].
Qed.

Lemma caught_fault w s seen hurt p v x :
  v <> bound s p -> caught w s seen hurt x -> caught w (write s p v) seen hurt x.
Proof.
  intros D [R | (q & Q & W)]; [now left | right]. exists q. split; [exact Q|]. simpl.
  destruct W as [W | [W H]]; [now left | right]. split; [|exact H].
  destruct (page_dec q p) as [-> | N]; [now rewrite upd_same | now rewrite upd_other].
Qed.

Lemma justified_bind w s p v x : x <> p -> ~ reads w x p -> justified w s x -> justified w (bind s p v) x.
Proof.
  intros N M [R | (q & Q & W)]; [left; simpl; now rewrite upd_other | right].
  exists q. split; [exact Q|]. unfold witness in *. simpl.
  destruct (page_dec q p) as [-> | K]; [easy | now rewrite !upd_other].
Qed.

Lemma caught_bind w s seen hurt p v x :
  x <> p -> ~ reads w x p -> caught w s seen hurt x -> caught w (bind s p v) seen hurt x.
Proof.
  intros N M [R | (q & Q & W)]; [left; simpl; now rewrite upd_other | right].
  exists q. split; [exact Q|]. simpl.
  destruct (page_dec q p) as [-> | K]; [easy | now rewrite !upd_other].
Qed.

Lemma reads_itself w p : ~ reads w p p.
Proof.
  destruct p as [|i|r i]; simpl; [easy | |].
  - intros [E | (j & L & E)]; [easy | injection E; lia].
  - intros [E | [(j & L & E) | (j & L & E)]]; [easy | easy | injection E; lia].
Qed.

Lemma justified_new w s p v : computes w s p v -> justified w (bind s p v) p.
Proof.
  intros [-> | (q & Q & M)]; [left; simpl; now rewrite upd_same | right].
  exists q. split; [exact Q|].
  assert (K : q <> p) by (intros ->; now apply reads_itself in Q).
  unfold witness. simpl. rewrite !upd_other by exact K.
  destruct (Nat.eq_dec (memory s q) (bound s q)) as [E | N]; [left; congruence | now right].
Qed.

Lemma good_bind w s p v x : x <> p -> good w s x -> good w (bind s p v) x.
Proof. intros N [R V]. split; simpl; now rewrite upd_other. Qed.

Lemma initial_ok w s : initial w s -> invariant w s.
Proof.
  intros (S & A & Z). constructor; unfold prefix_ok, job_ok; rewrite ?S; try exact A; try exact I.
  - split; [lia | split; [apply Z | lia]].
  - intros r i L. destruct (Z r) as (_ & C & _). lia.
  - intros r. destruct (Z r) as (G & C & _). lia.
  - intros r. destruct (Z r) as (G & C & T & R). lia.
  - intros r i L. destruct (Z r) as (G & _). lia.
Qed.

(* Wrong content of the last digest below a clean look is impossible: all witnesses were looked at. *)
Lemma clean_is_right w s upto seen hurt r :
  good w s Anchor -> (forall j, j < prefix w -> good w s (Shared j)) ->
  (forall i, i < upto -> caught w s seen hurt (Own r i)) ->
  (forall p, reads w (Own r upto) p -> seen p = true /\ hurt p = false) ->
  forall i, i < upto -> bound s (Own r i) = right w (Own r i).
Proof.
  intros A P C L i. induction i as [i IH] using lt_wf_ind. intros B.
  destruct (C i B) as [R | (q & Q & W)]; [exact R | exfalso].
  assert (Q' : reads w (Own r upto) q).
  { simpl in *. destruct Q as [Q | [Q | (j & J & Q)]]; [now left | right; now left | right; right].
    exists j. split; [lia | exact Q]. }
  destruct W as [W | [_ H]].
  - apply W. simpl in Q. destruct Q as [-> | [(j & J & ->) | (j & J & ->)]].
    + apply A.
    + now apply P.
    + apply IH; lia.
  - destruct (L q Q') as [S N]. rewrite (H S) in N. discriminate.
Qed.

Lemma not_prefill w s : prefix_ok w s -> (forall n, stage s <> Prefill n) ->
  good w s Anchor /\ forall j, j < prefix w -> good w s (Shared j).
Proof. intros P N. unfold prefix_ok in P. destruct (stage s); try exact P. now elim (N n). Qed.

Theorem step_keeps_invariant w s s' : invariant w s -> step every w s s' -> invariant w s'.
Proof.
  intros [A P F R T K J] H. destruct H as
    [p v D | n v S L C | n S | v S C V | r v S L C | upto S U | p upto seen hurt S same | upto seen hurt clean S L
    | upto clean hurt believed l S G B | l G | upto S | upto clean hurt believed back S B c | p back hurt S H
    | p N | back hurt c S D E | r k D].
  - (* fault *)
    specialize (D I). constructor; simpl; try assumption.
    + unfold prefix_ok in *. simpl. destruct (stage s); try exact P.
      destruct P as (P1 & P2 & P3). repeat split; try assumption.
      intros i L. apply justified_fault; auto.
    + intros r i L. destruct (K r i L) as [G | G]; [now left | right]. now apply justified_fault.
    + unfold job_ok in *. simpl. destruct (stage s); try exact J.
      destruct J as [J1 J2]. split; [exact J1|]. intros r i L. destruct (J2 r i L) as [X Y].
      split; [now apply caught_fault | exact Y].
  - (* prefill *)
    unfold prefix_ok in P. rewrite S in P. destruct P as (P1 & P2 & P3).
    constructor; simpl.
    + now rewrite upd_other.
    + unfold prefix_ok. simpl. split; [lia | split; [exact P2|]]. intros i B.
      destruct (Nat.eq_dec i n) as [-> | N].
      * apply (justified_new w s _ v C).
      * apply justified_bind; [congruence | | apply P3; lia].
        simpl. intros [X | (j & X & Y)]; [easy | injection Y; lia].
    + intros r i B. pose proof (R r). rewrite P2 in *. lia.
    + exact R.
    + exact T.
    + intros r i B. rewrite P2 in B. lia.
    + exact I.
  - (* prefill_again *)
    unfold prefix_ok in P. rewrite S in P. destruct P as (P1 & P2 & P3).
    constructor; simpl; try assumption.
    + unfold prefix_ok. simpl. split; [lia | split; [exact P2 | lia]].
    + intros r i B. rewrite P2 in B. lia.
    + exact I.
  - (* prefill_done *)
    specialize (C I). unfold prefix_ok in P. rewrite S in P. destruct P as (P1 & P2 & P3).
    assert (B : forall i, i < prefix w -> bound s (Shared i) = right w (Shared i)).
    { intros i. induction i as [i IH] using lt_wf_ind. intros L.
      destruct (P3 i L) as [X | (q & Q & W)]; [exact X | exfalso]. simpl in Q.
      destruct Q as [-> | (j & M & ->)]; destruct W as [W | W]; apply W.
      - exact A.
      - apply C. now left.
      - apply IH; lia.
      - apply C. right. exists j. split; [lia | easy]. }
    constructor; simpl; try assumption.
    + unfold prefix_ok. simpl. split.
      * split; [exact A | apply V; now left].
      * intros j L. split; [now apply B | apply V; right; now exists j].
    + intros r i L. pose proof (R r). rewrite P2 in *. lia.
    + intros r i L. rewrite P2 in L. lia.
    + exact I.
  - (* token *)
    specialize (L I). set (n := generated s r) in *.
    assert (NP : forall m, stage s <> Prefill m) by (intros m X; rewrite X in S; exact S).
    destruct (not_prefill w s P NP) as [GA GS].
    assert (G : forall r' i, i < generated s r' -> Own r' i <> Own r n /\ ~ reads w (Own r' i) (Own r n)).
    { intros r' i B. split.
      - intros X. injection X as -> ->. subst n. lia.
      - simpl. intros [X | [(j & M & X) | (j & M & X)]]; [easy | easy | injection X as <- <-]. subst n. lia. }
    constructor; simpl.
    + now rewrite upd_other.
    + unfold prefix_ok. simpl. destruct (stage s) eqn:X; try (now elim (NP n0));
        (split; [apply good_bind; [easy | exact GA] | intros j B; apply good_bind; [easy | now apply GS]]).
    + intros r' i B. apply good_bind; [|now apply F]. apply G. pose proof (R r'). lia.
    + intros r'. unfold upd_nat. destruct (Nat.eqb_spec r' r) as [-> | N]; [pose proof (R r); lia | apply R].
    + exact T.
    + intros r' i B. unfold upd_nat in B.
      assert (O : i < generated s r' \/ r' = r /\ i = n).
      { destruct (Nat.eqb_spec r' r) as [-> | N]; [|now left]. fold n in B |- *. lia. }
      destruct O as [O | [-> ->]].
      * destruct (K r' i O) as [X | X]; [now left | right]. destruct (G r' i O). now apply justified_bind.
      * right. now apply justified_new.
    + assert (U : forall r', generated s r' <= upd_nat (generated s) r (Datatypes.S n) r').
      { intros r'. unfold upd_nat. destruct (Nat.eqb_spec r' r) as [-> | N]; [subst n|]; lia. }
      assert (GB : forall upto r' i, (forall k, upto k <= generated s k) -> i < upto r' ->
        good w s (Own r' i) -> good w (bind s (Own r n) v) (Own r' i)).
      { intros upto r' i B M X. apply good_bind; [|exact X]. apply G. specialize (B r'). lia. }
      unfold job_ok in *. simpl. destruct (stage s) as [| |upto seen hurt|upto clean hurt|upto clean hurt b|];
        try exact I; [| | | now elim S].
      * destruct J as [J1 J2]. split; [intros r'; specialize (J1 r'); specialize (U r'); lia|].
        intros r' i B. destruct (J2 r' i B) as [X Y].
        assert (B' : i < generated s r') by (specialize (J1 r'); lia). destruct (G r' i B') as [G1 G2].
        split; [now apply caught_bind | intros Q1 Q2; rewrite upd_other by exact G1; now apply Y].
      * destruct J as [J1 J2]. split; [intros r'; specialize (J1 r'); specialize (U r'); lia|].
        intros r' i Q B. apply (GB upto); auto.
      * destruct J as (J1 & J2 & J3). split; [intros r'; specialize (J1 r'); specialize (U r'); lia|].
        split; [|exact J3]. intros r' i Q B. apply (GB upto); auto.
  - (* submit *)
    destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    constructor; simpl; try assumption.
    + unfold prefix_ok. simpl. now split.
    + intros r i L. destruct (K r i L) as [X | X]; [rewrite S in X; elim X | now right].
    + split; [exact U|]. intros r i L. split; [|easy].
      assert (B : i < generated s r) by (specialize (U r); lia).
      destruct (K r i B) as [X | [X | (q & Q & W)]]; [rewrite S in X; elim X | now left | right].
      exists q. split; [exact Q|]. destruct W as [W | W]; [now left | right]. now split.
  - (* look *)
    destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    assert (M : forall q, verified s q = true ->
      (if same then upd (verified s) p true else verified s) q = true).
    { intros q V. destruct same; [|exact V]. destruct (page_dec q p) as [-> | N];
        [apply upd_same | now rewrite upd_other]. }
    assert (GM : forall q, good w s q -> good w (set_verified s (if same then upd (verified s) p true else verified s)) q).
    { intros q [X Y]. split; [exact X | now apply M]. }
    unfold job_ok in J. rewrite S in J. destruct J as [J1 J2].
    constructor; simpl; try assumption.
    + split; [now apply GM | intros j B; now apply GM, GS].
    + intros r i L. now apply GM, F.
    + intros r i L. destruct (K r i L) as [X | X]; [rewrite S in X; elim X | right; exact X].
    + split; [exact J1|]. intros r i L. destruct (J2 r i L) as [X Y]. split.
      * destruct X as [X | (q & Q & W)]; [now left | right]. exists q. split; [exact Q|].
        destruct W as [W | [W H]]; [now left | right]. split; [exact W|]. simpl.
        destruct (page_dec q p) as [-> | N].
        -- rewrite !upd_same. intros _. unfold same. apply Nat.eqb_neq in W. rewrite W. apply orb_true_r.
        -- now rewrite !upd_other.
      * destruct (page_dec (Own r i) p) as [<- | N].
        -- rewrite !upd_same. intros _ H. apply orb_false_iff in H as [_ H].
           apply negb_false_iff in H. rewrite H. apply upd_same.
        -- rewrite !upd_other by exact N. intros X1 X2. now apply M, Y.
  - (* judge *)
    specialize (L I). destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    unfold job_ok in J. rewrite S in J. destruct J as [J1 J2].
    constructor; simpl; try assumption.
    + now split.
    + intros r i B. destruct (K r i B) as [X | X]; [rewrite S in X; elim X | now right].
    + split; [exact J1|]. intros r i Q B. split.
      * apply (clean_is_right w s (upto r) seen hurt r); try assumption.
        -- intros k M. now apply J2.
        -- intros p. now apply L.
      * assert (X : reads w (Own r (upto r)) (Own r i)) by (right; right; now exists i).
        destruct (L r _ Q X) as [X1 X2]. now apply (J2 r i B).
  - (* log_answers *)
    specialize (B I). destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    unfold job_ok in J. rewrite S in J. destruct J as [J1 J2].
    constructor; simpl; try assumption.
    + now split.
    + intros r. specialize (T r). specialize (G r). lia.
    + intros r i L. destruct (K r i L) as [X | X]; [rewrite S in X; elim X | now right].
    + now repeat split; try apply J2.
  - (* log_grows *)
    constructor; simpl; try assumption.
    + intros r. specialize (T r). specialize (G r). lia.
    + unfold job_ok in *. simpl. destruct (stage s); try exact J.
      destruct J as (J1 & J2 & J3). repeat split; try assumption; try now apply J2.
      intros X r Y. specialize (J3 X r Y). specialize (G r). lia.
  - (* worker_lost *)
    assert (NP : forall m, stage s <> Prefill m).
    { intros m X. destruct S as [(a & b & S) | (a & b & S)]; congruence. }
    destruct (not_prefill w s P NP) as [GA GS].
    constructor; simpl; try assumption.
    + now split.
    + intros r i L. destruct (K r i L) as [X | X]; [|now right].
      destruct S as [(a & b & S) | (a & b & S)]; rewrite S in X; elim X.
    + split; [|split; easy]. unfold job_ok in J. destruct S as [(a & b & S) | (a & b & S)]; rewrite S in J; apply J.
  - (* receive *)
    specialize (B I). destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    unfold job_ok in J. rewrite S in J. destruct J as (J1 & J2 & J3).
    constructor; simpl; try assumption.
    + now split.
    + intros r i L. unfold c in L. destruct believed, (clean r) eqn:E; simpl in L; try now apply F.
      destruct (Nat.lt_ge_cases i (committed s r)) as [M | M]; [now apply F | apply J2; [exact E | lia]].
    + intros r. unfold c. specialize (R r). specialize (J1 r). destruct (believed && clean r); lia.
    + intros r. unfold c. specialize (T r). destruct believed, (clean r) eqn:E; simpl; try lia.
      specialize (J3 eq_refl r E). lia.
    + intros r i L. destruct (K r i L) as [X | X]; [rewrite S in X; elim X | now right].
  - (* repair *)
    destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    unfold job_ok in J. rewrite S in J.
    constructor; simpl; try assumption.
    + unfold prefix_ok. simpl. rewrite S. now split.
    + intros r i L. rewrite S. simpl. destruct (K r i L) as [X | X]; [left; rewrite S in X; exact X|].
      destruct X as [X | (q & Q & W)]; [right; now left|].
      destruct (page_dec q p) as [-> | N].
      * left. apply (J p); [exact H|].
        destruct p as [| |r' i']; simpl in *; try exact I.
        destruct Q as [Q | [(j & M & Q) | (j & M & Q)]]; [easy | easy | now injection Q].
      * right. right. exists q. split; [exact Q|]. unfold witness in *. simpl. now rewrite upd_other.
    + unfold job_ok. simpl. now rewrite S.
  - (* silent_repair *) now elim N.
  - (* roll_back *)
    specialize (E I). destruct (not_prefill w s P) as [GA GS]; [intros n X; congruence|].
    constructor; simpl; try assumption.
    + now split.
    + intros r i L. rewrite E in L. now apply F.
    + intros r. rewrite E. specialize (R r). destruct (back r); lia.
    + intros r. rewrite E. apply T.
    + intros r i L. right. destruct (back r) eqn:X.
      * rewrite E in L. left. now apply F.
      * destruct (K r i L) as [Y | Y]; [rewrite S in Y; simpl in Y; congruence | exact Y].
    + exact I.
  - (* effect *)
    specialize (D I). constructor; simpl; try assumption.
    intros r'. unfold upd_nat. destruct (Nat.eqb_spec r' r) as [-> | N]; [|apply T].
    specialize (T r). lia.
Qed.

Theorem invariant_holds w s : reachable every w s -> invariant w s.
Proof. induction 1 as [s H | s s' _ IH H]; [now apply initial_ok | now apply (step_keeps_invariant w s)]. Qed.

Theorem always_safe w s : reachable every w s -> safe w s.
Proof.
  intros H. apply invariant_holds in H as [A P F R T K J]. split; [|repeat split].
  - intros r i L. split; [now apply F|]. intros q Q.
    destruct (not_prefill w s P) as [GA GS].
    + intros n S. unfold prefix_ok in P. rewrite S in P. destruct P as (_ & Z & _).
      specialize (R r). rewrite Z in R. lia.
    + simpl in Q. destruct Q as [-> | [(j & M & ->) | (j & M & ->)]]; [exact GA | now apply GS | apply F; lia].
  - intros r. apply T.
  - intros r. apply R.
  - intros r. apply T.
  - intros r. apply T.
  - unfold I9, job_ok in *. destruct (stage s); try exact I. intros r i C L. now apply J.
Qed.

Theorem final_depends_on_verified_pages_only w s r i q :
  reachable every w s -> i < committed s r -> q = Own r i \/ reads w (Own r i) q ->
  bound s q = right w q /\ verified s q = true.
Proof.
  intros H L Q. destruct (always_safe w s H) as [S _]. destruct (S r i L) as [G D].
  destruct Q as [-> | Q]; [exact G | now apply D].
Qed.

Theorem horizon_never_moves_back w s s' r : step every w s s' -> committed s r <= committed s' r.
Proof.
  intros H. destruct H; simpl; try apply Nat.le_refl.
  - unfold c. destruct (believed && clean r); lia.
  - match goal with E : every Horizon_is_kept -> _ |- _ => rewrite (E I r) end. apply Nat.le_refl.
Qed.

Inductive leads (on : rule -> Prop) (w : world) (s : state) : state -> Prop :=
  | here : leads on w s s
  | further s' s'' : leads on w s s' -> step on w s' s'' -> leads on w s s''.

Theorem final_tokens_stay w s s' r i :
  reachable every w s -> leads every w s s' -> i < committed s r ->
  i < committed s' r /\ bound s' (Own r i) = bound s (Own r i).
Proof.
  intros H L B.
  assert (X : reachable every w s' /\ committed s r <= committed s' r).
  { induction L as [|s' s'' L [IH1 IH2] S]; [now split|]. split; [now apply next with s'|].
    apply horizon_never_moves_back with (r := r) in S. lia. }
  destruct X as [X C]. split; [lia|].
  destruct (always_safe w s H) as [S _]. destruct (always_safe w s' X) as [S' _].
  destruct (S r i B) as [[E _] _]. destruct (S' r i) as [[E' _] _]; [lia | congruence].
Qed.

(* Each rule is needed: without it alone there is a run that is not safe. Right content is 1. *)
Definition small (n : nat) : world := World n 1 (fun _ => 1).
Definition fresh : state :=
  State (fun _ => 1) (fun _ => 1) (fun _ => 0) (fun _ => 0) (fun _ => 0) (fun _ => 0) (fun _ => 0)
    (fun _ => false) (Prefill 0).
Definition one (r : nat) : nat := if r =? 0 then 1 else 0.
Definition first (r : nat) : bool := r =? 0.

Lemma fresh_reachable on n : reachable on (small n) fresh.
Proof. apply start. repeat split. Qed.

(* A job that is judged clean is committed, if the log does its part. *)
Lemma then_committed on w s seen hurt l :
  reachable on w s -> stage s = Looking one seen hurt ->
  (on Leaves_are_checked -> forall p, reads w (Own 0 1) p -> seen p = true /\ hurt p = false) ->
  (forall r, in_log s r <= l r) -> (on Log_is_followed -> 1 <= l 0) ->
  exists s', reachable on w s' /\ 1 <= committed s' 0 /\ 1 <= told s' 0 /\ in_log s' = l /\
    bound s' = bound s /\ stage s' = Recovering (fun _ => true) hurt.
Proof.
  intros H S L G B.
  pose proof (judge on w s one seen hurt first S) as J.
  apply (next on w) in J; [|exact H|intros O [|r] p C; [now apply L | discriminate]].
  eapply (next on w) in J as J'.
  2: { apply (log_answers on w _ one first hurt true l); [reflexivity | exact G |].
       intros O _ [|r] C; [now apply B | discriminate]. }
  eapply (next on w) in J' as K.
  2: { apply (receive on w _ one first hurt true (fun _ => true)); reflexivity. }
  eexists. split; [exact K|]. repeat split.
  - exact (Nat.le_max_r (committed s 0) 1).
  - exact (Nat.le_trans _ _ _ (Nat.le_max_r (committed s 0) 1) (Nat.le_max_r (told s 0) _)).
Qed.

Lemma then_looked on n s :
  n <= 1 -> reachable on (small n) s -> stage s = Idle -> 1 <= generated s 0 ->
  memory s Anchor = bound s Anchor -> memory s (Shared 0) = bound s (Shared 0) ->
  memory s (Own 0 0) = bound s (Own 0 0) ->
  exists s' seen hurt, reachable on (small n) s' /\ stage s' = Looking one seen hurt /\
    (forall p, reads (small n) (Own 0 1) p -> seen p = true /\ hurt p = false) /\
    bound s' = bound s /\ in_log s' = in_log s.
Proof.
  intros N H S G EA ES EO.
  pose proof (submit on (small n) s one S) as J.
  apply (next on (small n)) in J; [|exact H|intros [|r]; [exact G | apply Nat.le_0_l]].
  eapply (next on _) in J as J1; [|apply (look on _ _ Anchor); reflexivity].
  eapply (next on _) in J1 as J2; [|apply (look on _ _ (Shared 0)); reflexivity].
  eapply (next on _) in J2 as J3; [|apply (look on _ _ (Own 0 0)); reflexivity].
  eexists _, _, _. split; [exact J3|]. split; [reflexivity|]. split; [|split; reflexivity].
  intros p. simpl. rewrite EA, ES, EO, !Nat.eqb_refl.
  intros [-> | [(j & M & ->) | (j & M & ->)]]; [| assert (j = 0) as -> by lia..]; now split.
Qed.

Lemma wrong_is_committed on n s :
  n <= 1 -> reachable on (small n) s -> stage s = Idle -> 1 <= generated s 0 ->
  memory s Anchor = bound s Anchor -> memory s (Shared 0) = bound s (Shared 0) ->
  memory s (Own 0 0) = bound s (Own 0 0) -> bound s (Own 0 0) <> 1 ->
  exists w s', reachable on w s' /\ ~ I1 w s'.
Proof.
  intros N H S G EA ES EO W.
  destruct (then_looked on n s N H S G EA ES EO) as (s1 & seen & hurt & H1 & S1 & L1 & B1 & _).
  destruct (then_committed on _ s1 seen hurt (fun r => 1 + in_log s1 r) H1 S1) as (s2 & H2 & C2 & _ & _ & B2 & _);
    [now intros _ | intros r; simpl; lia | simpl; lia |].
  exists (small n), s2. split; [exact H2|]. intros X. destruct (X 0 0 C2) as [[R _] _].
  apply W. rewrite <- B1, <- B2. exact R.
Qed.

(* A damaged anchor is found, and rewritten; `all`: everybody goes back. *)
Lemma then_anchor_repaired on w s (all : bool) :
  reachable on w s -> stage s = Idle -> memory s Anchor <> bound s Anchor -> (on Readers_go_back -> all = true) ->
  exists s', reachable on w s' /\ stage s' = Idle /\ memory s' Anchor = bound s Anchor /\
    (forall p, p <> Anchor -> memory s' p = memory s p) /\ bound s' = bound s /\
    (forall r, generated s' r = if all then committed s r else generated s r) /\ committed s' = committed s.
Proof.
  intros H S D A.
  pose proof (submit on w s (fun _ => 0) S) as J.
  apply (next on w) in J; [|exact H|intros r; apply Nat.le_0_l].
  eapply (next on w) in J as J1; [|apply (look on w _ Anchor); reflexivity].
  eapply (next on w) in J1 as J2.
  2: { eapply (judge on w _ (fun _ => 0) _ _ (fun _ => false)); [reflexivity | discriminate]. }
  eapply (next on w) in J2 as J3.
  2: { eapply (log_answers on w _ (fun _ => 0) (fun _ => false) _ false (in_log s)); [reflexivity | | discriminate].
       intros r. apply Nat.le_refl. }
  eapply (next on w) in J3 as J4.
  2: { eapply (receive on w _ (fun _ => 0) (fun _ => false) _ false (fun _ => all)); [reflexivity|].
       intros O p r _ _. now apply A. }
  eapply (next on w) in J4 as J5.
  2: { eapply (repair on w _ Anchor); [reflexivity|]. simpl. apply Nat.eqb_neq in D. now rewrite D. }
  eapply (next on w) in J5 as J6.
  2: { eapply (roll_back on w _ _ _ (committed s)); [reflexivity | |]; simpl; intros; lia. }
  eexists. split; [exact J6|]. simpl. repeat split.
  intros p N. now apply upd_other.
Qed.

Definition breaks (x : rule) (w : world) (s : state) : Prop :=
  match x with
  | Horizon_is_kept => ~ I2 s
  | Cap_is_kept => ~ I4 w s
  | Effects_wait => ~ I5 s
  | Log_is_followed => ~ I8 s
  | _ => ~ I1 w s
  end.

(* Ready to decode under an anchor; then a token that is right, or one of content 2 that is computed from a damaged anchor. *)
Definition ready : state := go (set_verified fresh (fun _ => true)) Idle.
Definition step_token (s : state) (v : nat) : state :=
  set_generated (bind s (Own 0 (generated s 0)) v) (upd_nat (generated s) 0 (S (generated s 0))).
Definition right_token : state := step_token ready 1.
Definition wrong_token : state := step_token (write ready Anchor 0) 2.

Lemma ready_reachable on : reachable on (small 0) ready.
Proof.
  apply (next on (small 0) fresh); [apply fresh_reachable|].
  apply (prefill_done on (small 0) fresh (fun _ => true)); reflexivity.
Qed.

Lemma right_token_reachable on : reachable on (small 0) right_token.
Proof.
  apply (next on (small 0) ready); [apply ready_reachable|].
  apply (token on (small 0) ready 0 1); [exact I | simpl; lia | now left].
Qed.

Lemma wrong_token_reachable on : reachable on (small 0) wrong_token.
Proof.
  apply (next on (small 0) (write ready Anchor 0)).
  - apply (next on (small 0) ready); [apply ready_reachable|].
    apply (fault on (small 0) ready Anchor 0). discriminate.
  - apply (token on (small 0) (write ready Anchor 0) 0 2); [exact I | simpl; lia |].
    right. exists Anchor. split; [now left | discriminate].
Qed.

(* A token that is right is committed, whatever the log holds then, if it need not be followed. *)
Lemma right_is_committed (on : rule -> Prop) l :
  (on Log_is_followed -> 1 <= l 0) ->
  exists s hurt, reachable on (small 0) s /\ 1 <= committed s 0 /\ 1 <= told s 0 /\ in_log s = l /\
    stage s = Recovering (fun _ => true) hurt.
Proof.
  intros L.
  destruct (then_looked on 0 right_token) as (s & seen & hurt & H & St & K & B & G);
    [lia | apply right_token_reachable | reflexivity..|].
  destruct (then_committed on (small 0) s seen hurt l H St) as (s' & H' & C & T & G' & _ & St');
    [now intros _ | rewrite G; intros r; apply Nat.le_0_l | exact L |].
  now exists s', hurt.
Qed.

Theorem tokens_are_committed : exists w s, reachable every w s /\ 1 <= committed s 0 /\ 1 <= told s 0.
Proof.
  destruct (right_is_committed every (fun _ => 1)) as (s & _ & H & C & T & _); [reflexivity|].
  now exists (small 0), s.
Qed.

Theorem every_rule_is_needed x : exists w s, reachable (without x) w s /\ breaks x w s.
Proof.
  destruct x; simpl.
  - (* Prefix_is_checked: a prefix is computed from a damaged anchor, which is repaired for everybody *)
    set (on := without Prefix_is_checked).
    pose (p1 := write fresh Anchor 0).
    pose (p2 := go (bind p1 (Shared 0) 2) (Prefill 1)).
    pose (p3 := go (set_verified p2 (fun _ => true)) Idle).
    assert (P3 : reachable on (small 1) p3).
    { apply (next on (small 1) p2); [apply (next on (small 1) p1); [apply (next on (small 1) fresh)|]|].
      - apply fresh_reachable.
      - apply (fault on (small 1) fresh Anchor 0). discriminate.
      - apply (prefill on (small 1) p1 0 2); [reflexivity | simpl; lia |].
        right. exists Anchor. split; [now left | discriminate].
      - apply (prefill_done on (small 1) p2 (fun _ => true)); [reflexivity | | reflexivity].
        intros O. now elim O. }
    destruct (then_anchor_repaired on (small 1) p3 true P3) as (p4 & P4 & St & M & O & B & G & C);
      [reflexivity | discriminate | reflexivity |].
    pose (p5 := step_token p4 2).
    assert (G0 : generated p4 0 = 0) by (rewrite G; reflexivity).
    apply (wrong_is_committed on 1 p5); try lia.
    + apply (next on (small 1) p4); [exact P4|]. apply (token on (small 1) p4 0 2).
      * now rewrite St.
      * rewrite G0, C. simpl. lia.
      * right. exists (Shared 0). rewrite G0, O by discriminate. split; [|discriminate].
        right. left. exists 0. simpl. split; [lia | reflexivity].
    + exact St.
    + simpl. rewrite G0. exact (Nat.le_refl 1).
    + simpl. rewrite !upd_other, M, B by discriminate. reflexivity.
    + simpl. rewrite !upd_other, B, O by discriminate. reflexivity.
    + simpl. rewrite G0, !upd_same. reflexivity.
    + simpl. rewrite G0, upd_same. discriminate.
  - (* Leaves_are_checked *)
    set (on := without Leaves_are_checked).
    pose (p := go wrong_token (Looking one (fun _ => false) (fun _ => false))).
    assert (P : reachable on (small 0) p).
    { apply (next on (small 0) wrong_token); [apply wrong_token_reachable|].
      apply (submit on (small 0) wrong_token one); [reflexivity|].
      intros [|r]; [reflexivity | apply Nat.le_refl]. }
    destruct (then_committed on (small 0) p (fun _ => false) (fun _ => false) (fun _ => 1) P eq_refl)
      as (s & H & C & _ & _ & B & _);
      [intros O; now elim O | intros r; apply Nat.le_0_l | reflexivity |].
    exists (small 0), s. split; [exact H|]. intros X. destruct (X 0 0 C) as [[R _] _].
    rewrite B in R. discriminate.
  - (* Readers_go_back *)
    set (on := without Readers_go_back).
    destruct (then_anchor_repaired on (small 0) wrong_token false) as (p & P & St & M & O & B & G & C);
      [apply wrong_token_reachable | reflexivity | discriminate | intros N; now elim N |].
    apply (wrong_is_committed on 0 p); try assumption; try lia.
    + rewrite G. reflexivity.
    + now rewrite M, B.
    + rewrite O, B by discriminate. reflexivity.
    + rewrite O, B by discriminate. reflexivity.
    + rewrite B. discriminate.
  - (* Repairs_are_open *)
    set (on := without Repairs_are_open).
    apply (wrong_is_committed on 0 (write wrong_token Anchor (bound wrong_token Anchor)));
      try reflexivity; try discriminate; try lia.
    apply (next on (small 0) wrong_token); [apply wrong_token_reachable|].
    apply (silent_repair on (small 0) wrong_token Anchor). intros O. now elim O.
  - (* Horizon_is_kept *)
    destruct (right_is_committed (without Horizon_is_kept) (fun _ => 1)) as (s & hurt & H & C & T & _ & St);
      [reflexivity|].
    exists (small 0). eexists. split.
    + eapply next; [exact H|].
      apply (roll_back (without Horizon_is_kept) (small 0) s (fun _ => true) hurt (fun _ => 0) St);
        [intros r; apply Nat.le_0_l | intros O; now elim O].
    + intros X. specialize (X 0). simpl in X. lia.
  - (* Log_is_followed *)
    destruct (right_is_committed (without Log_is_followed) (fun _ => 0)) as (s & hurt & H & C & _ & L & _);
      [intros O; now elim O|].
    exists (small 0), s. split; [exact H|]. intros X. specialize (X 0). rewrite L in X. lia.
  - (* Cap_is_kept *)
    set (on := without Cap_is_kept).
    exists (small 0), (step_token right_token 1). split.
    + apply (next on (small 0) right_token); [apply right_token_reachable|].
      apply (token on (small 0) right_token 0 1); [exact I | intros O; now elim O | now left].
    + intros X. exact (Nat.nle_succ_diag_l 1 (X 0)).
  - (* Effects_wait *)
    set (on := without Effects_wait).
    exists (small 0). eexists. split.
    + apply (next on (small 0) ready); [apply ready_reachable|].
      apply (effect on (small 0) ready 0 1). intros O. now elim O.
    + intros X. exact (Nat.nle_succ_diag_l 0 (X 0)).
  - (* Damage_lasts *)
    set (on := without Damage_lasts).
    apply (wrong_is_committed on 0 (write wrong_token Anchor 1)); try reflexivity; try discriminate; try lia.
    apply (next on (small 0) wrong_token); [apply wrong_token_reachable|].
    apply (fault on (small 0) wrong_token Anchor 1). intros O. now elim O.
Qed.
