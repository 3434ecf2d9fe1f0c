(* Recovering a code exactly from a value that is off by noise, and b low bits of the code.
   The prover has x and publishes h = RNE(x / D) mod 2^b; the verifier has y and takes the integer nearest y / D
   among those congruent to h. *)
From Coq Require Import Reals ZArith List Lia Lra.
From Flocq Require Import Core.
From Fieldprint Require Import Quantize.
Import ListNotations.
Open Scope R_scope.

Definition grid (D x : R) : Z := ZnearestE (x / D).
Definition hint (m c : Z) : Z := (c mod m)%Z.
Definition decode (D : R) (m h : Z) (y : R) : Z := (m * ZnearestE ((y / D - IZR h) / IZR m) + h)%Z.

Definition recovers (D tau : R) (m : Z) : Prop :=
  forall x y, Rabs (x - y) <= tau -> decode D m (hint m (grid D x)) y = grid D x.

Lemma grid_is_code x e : grid (pow2 e) x = code x e.
Proof. unfold grid, code, Rdiv. now rewrite bpow_opp. Qed.

Lemma grid_near D x : 0 < D -> Rabs (x - IZR (grid D x) * D) <= D / 2.
Proof.
  intros HD. pose proof (Znearest_half (fun t => negb (Z.even t)) (x / D)) as H.
  replace (x - IZR (grid D x) * D) with ((x / D - IZR (grid D x)) * D) by (field; lra).
  rewrite Rabs_mult, (Rabs_pos_eq D) by lra. unfold grid.
  apply Rmult_le_compat_r with (r := D) in H; lra.
Qed.

Theorem hint_complete D tau m :
  0 < D -> (0 < m)%Z -> tau < (IZR m - 1) * D / 2 -> recovers D tau m.
Proof.
  intros HD Hm T x y N. unfold decode, hint. set (c := grid D x).
  apply IZR_lt in Hm as Hm'.
  pose proof (grid_near D x HD) as G. fold c in G.
  rewrite (Znearest_imp _ _ (c / m)).
  - pose proof (Z.div_mod c m). lia.
  - assert (E : (c = m * (c / m) + c mod m)%Z) by (apply Z.div_mod; lia).
    apply (f_equal IZR) in E. rewrite plus_IZR, mult_IZR in E.
    replace ((y / D - IZR (c mod m)) / IZR m - IZR (c / m)) with ((y - IZR c * D) / (IZR m * D))
      by (rewrite E; field; lra).
    unfold Rdiv. rewrite Rabs_mult, (Rabs_pos_eq (/ (IZR m * D)))
      by (apply Rlt_le, Rinv_0_lt_compat; nra).
    apply Rmult_lt_reg_r with (IZR m * D); [nra|].
    rewrite Rmult_assoc, Rinv_l, Rmult_1_r by nra.
    pose proof (Rabs_triang (y - x) (x - IZR c * D)) as A.
    replace (y - x + (x - IZR c * D)) with (y - IZR c * D) in A by ring.
    rewrite (Rabs_minus_sym y x) in A. lra.
Qed.

(* At the bound itself a tie breaks the wrong way. *)
Theorem hint_tight D m :
  0 < D -> (2 <= m)%Z -> Z.even m = true -> exists x y,
  Rabs (x - y) = (IZR m - 1) * D / 2 /\ decode D m (hint m (grid D x)) y <> grid D x.
Proof.
  intros HD Hm Ev. apply IZR_le in Hm as Hm'.
  exists ((IZR m + / 2) * D), (IZR m * (3 / 2) * D).
  assert (G : grid D ((IZR m + / 2) * D) = m).
  { unfold grid. replace ((IZR m + / 2) * D / D) with (IZR m + / 2) by (field; lra).
    now rewrite tie, Ev. }
  split.
  - replace ((IZR m + / 2) * D - IZR m * (3 / 2) * D) with (- ((IZR m - 1) * D / 2)) by field.
    rewrite Rabs_Ropp. apply Rabs_pos_eq. nra.
  - rewrite G. unfold hint, decode. rewrite Z_mod_same_full.
    replace ((IZR m * (3 / 2) * D / D - 0) / IZR m) with (IZR 1 + / 2) by (field; lra).
    rewrite tie. simpl. lia.
Qed.

Lemma pow_even b : (1 <= b)%Z -> Z.even (2 ^ b) = true /\ (2 <= 2 ^ b)%Z.
Proof.
  intros B. split; [apply Z.even_pow; lia|].
  change 2%Z with (2 ^ 1)%Z at 1. apply Z.pow_le_mono_r; lia.
Qed.

Theorem hint_recovery D tau b :
  0 < D -> (1 <= b)%Z -> (recovers D tau (2 ^ b) <-> tau < (IZR (2 ^ b) - 1) * D / 2).
Proof.
  intros HD B. destruct (pow_even b B) as [Ev Hm]. split.
  - intros R. apply Rnot_le_lt. intros T.
    destruct (hint_tight D (2 ^ b) HD Hm Ev) as (x & y & N & W).
    apply W, R. lra.
  - apply hint_complete; [exact HD | lia].
Qed.

(* Without a hint only the value itself is enough. *)
Theorem no_hint_no_noise D tau : 0 < D -> 0 <= tau -> (recovers D tau (2 ^ 0) <-> tau = 0).
Proof.
  intros HD T. change (2 ^ 0)%Z with 1%Z. unfold recovers, decode, hint. split.
  - intros R. destruct (Rle_lt_or_eq_dec 0 tau T) as [P | E]; [exfalso | now symmetry].
    set (t := Rmin tau (D / 4)).
    assert (P' : 0 < t) by (unfold t; apply Rmin_glb_lt; lra).
    assert (S : t <= tau) by apply Rmin_l. assert (S' : t <= D / 4) by apply Rmin_r.
    specialize (R ((IZR 0 + / 2) * D) ((IZR 0 + / 2) * D + t)).
    replace ((IZR 0 + / 2) * D - ((IZR 0 + / 2) * D + t)) with (- t) in R by ring.
    rewrite Rabs_Ropp, Rabs_pos_eq in R by lra. specialize (R S).
    assert (G : grid D ((IZR 0 + / 2) * D) = 0%Z).
    { unfold grid. replace ((IZR 0 + / 2) * D / D) with (IZR 0 + / 2) by (field; lra). apply tie. }
    rewrite G in R. change (0 mod 1)%Z with 0%Z in R.
    rewrite (Znearest_imp _ _ 1) in R; [lia|].
    replace ((((IZR 0 + / 2) * D + t) / D - 0) / 1 - 1) with (- (/ 2 - t / D)) by (field; lra).
    rewrite Rabs_Ropp. assert (0 < t / D) by (apply Rdiv_lt_0_compat; lra).
    assert (t / D <= / 4) by (apply Rmult_le_reg_r with D; [lra|]; unfold Rdiv;
      rewrite Rmult_assoc, Rinv_l by lra; lra).
    apply Rabs_lt. lra.
  - intros -> x y N. assert (y = x) as ->.
    { destruct (Req_dec (x - y) 0) as [E | E]; [lra | apply Rabs_pos_lt in E; lra]. }
    rewrite Z.mod_1_r. replace ((x / D - 0) / 1) with (x / D) by (field; lra). unfold grid. lia.
Qed.

Lemma NoDup_map_injective {A B} (f : A -> B) l :
  NoDup l -> (forall x y, In x l -> In y l -> f x = f y -> x = y) -> NoDup (map f l).
Proof.
  induction 1 as [|a l N _ IH]; intros I; simpl; constructor.
  - intros M. apply in_map_iff in M as (b & E & Ib). apply N.
    rewrite (I a b); [exact Ib | now left | now right | now symmetry].
  - apply IH. intros x y X Y. apply I; now right.
Qed.

(* No scheme with a hint of b bits bears more noise, however it chooses hints and decodes them. *)
Theorem hint_optimal D tau b (encode : R -> Z) (recover : Z -> R -> Z) :
  0 < D -> (1 <= b)%Z ->
  (forall x, (0 <= encode x < 2 ^ b)%Z) ->
  (forall x y, Rabs (x - y) <= tau -> recover (encode x) y = grid D x) ->
  tau < (IZR (2 ^ b) - 1) * D / 2.
Proof.
  intros HD B H R. destruct (pow_even b B) as [Ev Hm]. set (m := (2 ^ b)%Z) in *.
  apply Rnot_le_lt. intros T. apply IZR_le in Hm as Hm'.
  (* m + 1 values with the codes 0..m, all within tau of y *)
  set (y := IZR m / 2 * D).
  set (x := fun c : nat => if Nat.eqb c 0 then D / 2
            else if Z.eqb (Z.of_nat c) m then (IZR m - / 2) * D else INR c * D).
  set (n := Z.to_nat m). assert (Hn : Z.of_nat n = m) by (unfold n; lia).
  assert (X : forall c, (c <= n)%nat -> grid D (x c) = Z.of_nat c /\ Rabs (x c - y) <= tau).
  { intros c C. unfold x, y.
    destruct (Nat.eqb_spec c 0) as [-> | N0].
    { split.
      - unfold grid. replace (D / 2 / D) with (IZR 0 + / 2) by (field; lra). apply tie.
      - rewrite Rabs_minus_sym, Rabs_pos_eq; nra. }
    destruct (Z.eqb_spec (Z.of_nat c) m) as [E | N1].
    { split.
      - rewrite E. unfold grid.
        replace ((IZR m - / 2) * D / D) with (IZR (m - 1) + / 2) by (rewrite minus_IZR; field; lra).
        rewrite tie. replace (Z.even (m - 1)) with false; [lia|].
        rewrite Z.even_sub, Ev. reflexivity.
      - rewrite Rabs_pos_eq; nra. }
    split.
    - unfold grid. replace (INR c * D / D) with (INR c) by (field; lra).
      rewrite INR_IZR_INZ. apply Zrnd_IZR, valid_rnd_N.
    - assert (1 <= INR c <= IZR m - 1).
      { rewrite INR_IZR_INZ. split; [apply IZR_le; lia|].
        rewrite <- minus_IZR. apply IZR_le. lia. }
      apply Rabs_le. nra. }
  assert (U : NoDup (map (fun c => encode (x c)) (seq 0 (S n)))).
  { apply NoDup_map_injective; [apply seq_NoDup|].
    intros c c' I I' E. apply in_seq in I, I'.
    destruct (X c ltac:(lia)) as [G N]. destruct (X c' ltac:(lia)) as [G' N'].
    apply R in N, N'. rewrite E in N. lia. }
  apply NoDup_incl_length with (l' := map Z.of_nat (seq 0 n)) in U.
  - rewrite !map_length, !seq_length in U. lia.
  - intros h I. apply in_map_iff in I as (c & <- & _). specialize (H (x c)).
    apply in_map_iff. exists (Z.to_nat (encode (x c))). rewrite in_seq. lia.
Qed.

(* What a hint can say whoever chose it: a code within 2^(b-1) steps of the verifier's own value. *)
Theorem decode_radius D m h y :
  0 < D -> (0 < m)%Z -> Rabs (y - IZR (decode D m h y) * D) <= IZR m / 2 * D.
Proof.
  intros HD Hm. apply IZR_lt in Hm as Hm'. unfold decode. set (t := (y / D - IZR h) / IZR m).
  pose proof (Znearest_half (fun t => negb (Z.even t)) t) as N.
  rewrite plus_IZR, mult_IZR.
  replace (y - (IZR m * IZR (ZnearestE t) + IZR h) * D) with ((t - IZR (ZnearestE t)) * (IZR m * D))
    by (unfold t; field; lra).
  rewrite Rabs_mult, (Rabs_pos_eq (IZR m * D)) by nra.
  apply Rmult_le_compat_r with (r := IZR m * D) in N; nra.
Qed.

(* The residual check of an honest code never fails, whatever the hint. *)
Theorem residual_honest D tau x y :
  0 < D -> Rabs (x - y) <= tau -> Rabs (y - IZR (grid D x) * D) <= tau + D / 2.
Proof.
  intros HD N. pose proof (grid_near D x HD) as G.
  pose proof (Rabs_triang (y - x) (x - IZR (grid D x) * D)) as A.
  replace (y - x + (x - IZR (grid D x) * D)) with (y - IZR (grid D x) * D) in A by ring.
  rewrite (Rabs_minus_sym y x) in A. lra.
Qed.

(* Hints for those values only that noise could carry over a boundary between two codes: is the code the upper one? *)
Definition sparse_hint (D tau x : R) : option bool :=
  if Rle_dec (Rabs (x / D - (IZR (Zfloor (x / D)) + / 2))) (tau / D)
  then Some (grid D x =? Zfloor (x / D) + 1)%Z else None.
Definition sparse_decode (D : R) (h : option bool) (y : R) : Z :=
  match h with
  | None => grid D y
  | Some upper => (Zfloor (y / D) + if upper then 1 else 0)%Z
  end.

Theorem sparse_recovery D tau :
  0 < D -> 0 <= tau ->
  ((forall x y, Rabs (x - y) <= tau -> sparse_decode D (sparse_hint D tau x) y = grid D x) <-> tau < D / 4).
Proof.
  intros HD HT. split.
  - intros H. apply Rnot_le_lt. intros T.
    specialize (H ((IZR 0 + 3 / 4) * D) ((IZR 0 + 3 / 4) * D + D / 4)).
    assert (Q : / 4 <= tau / D).
    { apply Rmult_le_reg_r with D; [exact HD|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
    assert (G : grid D ((IZR 0 + 3 / 4) * D) = 1%Z).
    { unfold grid. apply Znearest_imp. replace ((IZR 0 + 3 / 4) * D / D - 1) with (- / 4) by (field; lra).
      rewrite Rabs_Ropp, Rabs_pos_eq; lra. }
    assert (F : Zfloor ((IZR 0 + 3 / 4) * D / D) = 0%Z).
    { apply Zfloor_imp. replace ((IZR 0 + 3 / 4) * D / D) with (3 / 4) by (field; lra). simpl. lra. }
    unfold sparse_hint in H. rewrite F, G in H.
    destruct (Rle_dec _ _) as [L | L] in H.
    + simpl in H. replace (((0 + 3 / 4) * D + D / 4) / D) with (IZR 1) in H by (field; lra).
      rewrite Zfloor_IZR in H. enough (2 = 1)%Z by lia. apply H.
      replace ((0 + 3 / 4) * D - ((0 + 3 / 4) * D + D / 4)) with (- (D / 4)) by ring.
      rewrite Rabs_Ropp, Rabs_pos_eq; lra.
    + apply L. replace ((IZR 0 + 3 / 4) * D / D - (0 + / 2)) with (/ 4) by (field; lra).
      rewrite Rabs_pos_eq; lra.
  - intros T x y N. set (t := x / D). set (u := y / D).
    assert (NT : Rabs (t - u) <= tau / D).
    { unfold t, u. replace (x / D - y / D) with ((x - y) * / D) by (field; lra).
      rewrite Rabs_mult, (Rabs_pos_eq (/ D)) by (apply Rlt_le, Rinv_0_lt_compat; exact HD).
      apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat; exact HD | exact N]. }
    assert (Q : tau / D < / 4).
    { apply Rmult_lt_reg_r with D; [exact HD|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
    pose proof (Zfloor_lb t) as F1. pose proof (Zfloor_ub t) as F2.
    unfold sparse_hint, sparse_decode, grid. fold t u. set (f := Zfloor t) in *.
    apply Rabs_le_inv in NT.
    destruct (Rle_dec _ _) as [L | L].
    + apply Rabs_le_inv in L.
      rewrite (Zfloor_imp f u) by (rewrite plus_IZR; lra).
      destruct (Znearest_DN_or_UP (fun k => negb (Z.even k)) t) as [E | E]; rewrite E.
      * fold f. destruct (Z.eqb_spec f (f + 1)); lia.
      * rewrite (Zceil_imp (f + 1)) by (replace (f + 1 - 1)%Z with f by lia; rewrite plus_IZR; lra).
        now rewrite Z.eqb_refl.
    + apply Rnot_le_lt in L.
      destruct (Rlt_or_le t (IZR f + / 2)) as [B | B].
      * rewrite Rabs_left in L by lra.
        transitivity f; [|symmetry]; apply Znearest_imp, Rabs_lt; lra.
      * rewrite Rabs_pos_eq in L by lra.
        transitivity (f + 1)%Z; [|symmetry]; apply Znearest_imp, Rabs_lt; rewrite plus_IZR; lra.
Qed.
