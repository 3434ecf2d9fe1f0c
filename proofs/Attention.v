(* How far quantising keys and values moves the output of attention. *)
From Coq Require Import Reals ZArith List Lia Lra.
From Flocq Require Import Core.
From Fieldprint Require Import Quantize Mass.
Import ListNotations.
Open Scope R_scope.

Definition wsum (l : list (R * R)) : R := sum (map (fun p => exp (fst p) * snd p) l).

Lemma wsum_cons x v l : wsum ((x, v) :: l) = exp x * v + wsum l.
Proof. reflexivity. Qed.

(* The heart: shares p of (p + q) and P of (P + Q) where no part changed by more than a factor rho. *)
Lemma share p q P Q rho :
  1 <= rho -> 0 <= p -> 0 <= q -> 0 < p + q -> 0 < P + Q -> P <= rho * p -> q <= rho * Q -> 0 <= Q -> 0 <= P ->
  P / (P + Q) - p / (p + q) <= (rho - 1) / (rho + 1).
Proof.
  intros R Hp Hq S T B C HQ HP.
  apply Rmult_le_reg_r with ((P + Q) * (p + q) * (rho + 1)); [repeat apply Rmult_lt_0_compat; lra|].
  replace ((P / (P + Q) - p / (p + q)) * ((P + Q) * (p + q) * (rho + 1)))
    with ((P * q - p * Q) * (rho + 1)) by (field; lra).
  replace ((rho - 1) / (rho + 1) * ((P + Q) * (p + q) * (rho + 1))) with ((rho - 1) * ((P + Q) * (p + q)))
    by (field; lra).
  set (z := q / rho). assert (Z : q = rho * z) by (unfold z; field; lra).
  assert (HZ : 0 <= z) by nra. assert (ZQ : z <= Q) by nra.
  destruct (Rle_lt_or_eq_dec 0 p Hp) as [Pp | <-].
  - assert (G : 0 <= p * ((rho - 1) * P * p + (rho - 1) * rho * (z * z) - 2 * rho * P * z + 2 * rho * p * z)).
    { replace (p * ((rho - 1) * P * p + (rho - 1) * rho * (z * z) - 2 * rho * P * z + 2 * rho * p * z))
        with (P * (rho - 1) * ((p - z) * (p - z)) + (rho * p - P) * ((rho - 1) * (z * z) + 2 * p * z)) by ring.
      pose proof (Rle_0_sqr (p - z)) as U. unfold Rsqr in U.
      assert (0 <= z * z) by (apply Rmult_le_pos; exact HZ).
      assert (0 <= p * z) by (apply Rmult_le_pos; lra).
      apply Rplus_le_le_0_compat; apply Rmult_le_pos; try lra.
      - apply Rmult_le_pos; lra.
      - apply Rplus_le_le_0_compat; [apply Rmult_le_pos|]; lra. }
    assert (G' : 0 <= (rho - 1) * P * p + (rho - 1) * rho * (z * z) - 2 * rho * P * z + 2 * rho * p * z).
    { apply Rmult_le_reg_l with p; [exact Pp | lra]. }
    assert (M : 0 <= (Q - z) * ((rho - 1) * q + 2 * rho * p)).
    { apply Rmult_le_pos; [lra|]. apply Rplus_le_le_0_compat; apply Rmult_le_pos; try lra; nra. }
    rewrite Z in *. lra.
  - assert (P = 0) as -> by lra. rewrite Rmult_0_l, Rmult_0_l, Rminus_0_r, Rmult_0_l.
    apply Rmult_le_pos; [lra | apply Rmult_le_pos; lra].
Qed.

Definition perturbed (l : list (R * R * R)) : list (R * R) := map (fun t => (fst (fst t) + snd (fst t), snd t)) l.
Definition plain (l : list (R * R * R)) : list (R * R) := map (fun t => (fst (fst t), snd t)) l.

Lemma output_wsum l : output l = wsum l / expsum (map fst l).
Proof. reflexivity. Qed.

Lemma tanh_half eps : tanh (eps / 2) = (exp eps - 1) / (exp eps + 1).
Proof.
  unfold tanh, sinh, cosh. rewrite exp_Ropp.
  replace (exp eps) with (exp (eps / 2) * exp (eps / 2)) by (rewrite <- exp_plus; f_equal; field).
  pose proof (exp_pos (eps / 2)). field. nra.
Qed.

Lemma exp_le x y : x <= y -> exp x <= exp y.
Proof. intros H. destruct (Rle_lt_or_eq_dec x y H) as [L | ->]; [now apply Rlt_le, exp_increasing | lra]. Qed.

(* Logits off by at most eps. *)
Theorem softmax_error l eps lo hi :
  l <> [] -> (forall t, In t l -> Rabs (snd (fst t)) <= eps /\ lo <= snd t <= hi) ->
  Rabs (output (perturbed l) - output (plain l)) <= tanh (eps / 2) * (hi - lo).
Proof.
  intros N H.
  set (X := expsum (map fst (plain l))). set (Y := expsum (map fst (perturbed l))).
  set (x := wsum (plain l)). set (y := wsum (perturbed l)). set (rho := exp eps).
  assert (HX : 0 < X) by (apply expsum_pos; destruct l; easy).
  assert (HY : 0 < Y) by (apply expsum_pos; destruct l; easy).
  assert (E : 0 <= eps).
  { destruct l as [|t l]; [easy|]. destruct (H t (or_introl eq_refl)) as [B _].
    pose proof (Rabs_pos (snd (fst t))). lra. }
  assert (R : 1 <= rho) by (unfold rho; rewrite <- exp_0; now apply exp_le).
  assert (W : lo <= hi).
  { destruct l as [|t l]; [easy|]. destruct (H t (or_introl eq_refl)) as [_ B]. lra. }
  assert (K : 0 <= x - lo * X /\ 0 <= hi * X - x /\ 0 <= y - lo * Y /\ 0 <= hi * Y - y /\
    y - lo * Y <= rho * (x - lo * X) /\ hi * Y - y <= rho * (hi * X - x) /\
    x - lo * X <= rho * (y - lo * Y) /\ hi * X - x <= rho * (hi * Y - y)).
  { clear N HX HY. unfold x, X, y, Y. clear x X y Y.
    induction l as [|[[a d] v] l IH].
    - cbn. unfold wsum, expsum. cbn. lra.
    - destruct (H (a, d, v) (or_introl eq_refl)) as [D V]. cbn [fst snd] in D, V.
      assert (I := IH (fun t T => H t (or_intror T))). clear IH H.
      cbn [plain perturbed map fst snd]. fold (plain l) (perturbed l).
      rewrite !wsum_cons, !expsum_cons.
      apply Rabs_le_inv in D. pose proof (exp_pos a) as Pa.
      assert (U : exp (a + d) <= rho * exp a).
      { unfold rho. rewrite <- exp_plus. apply exp_le. lra. }
      assert (U' : exp a <= rho * exp (a + d)).
      { unfold rho. rewrite <- exp_plus. apply exp_le. lra. }
      pose proof (exp_pos (a + d)) as Pd.
      set (u := exp a) in *. set (u' := exp (a + d)) in *.
      assert (0 <= u * (v - lo)) by (apply Rmult_le_pos; lra).
      assert (0 <= u * (hi - v)) by (apply Rmult_le_pos; lra).
      assert (0 <= u' * (v - lo)) by (apply Rmult_le_pos; lra).
      assert (0 <= u' * (hi - v)) by (apply Rmult_le_pos; lra).
      assert (u' * (v - lo) <= rho * u * (v - lo)) by (apply Rmult_le_compat_r; lra).
      assert (u' * (hi - v) <= rho * u * (hi - v)) by (apply Rmult_le_compat_r; lra).
      assert (u * (v - lo) <= rho * u' * (v - lo)) by (apply Rmult_le_compat_r; lra).
      assert (u * (hi - v) <= rho * u' * (hi - v)) by (apply Rmult_le_compat_r; lra).
      lra. }
  rewrite !output_wsum, tanh_half. fold x X y Y rho.
  destruct (Rle_lt_or_eq_dec lo hi W) as [L | <-].
  - assert (A : 0 < (hi - lo) * X) by (apply Rmult_lt_0_compat; lra).
    assert (A' : 0 < (hi - lo) * Y) by (apply Rmult_lt_0_compat; lra).
    assert (B1 := share (x - lo * X) (hi * X - x) (y - lo * Y) (hi * Y - y) rho).
    assert (B2 := share (hi * X - x) (x - lo * X) (hi * Y - y) (y - lo * Y) rho).
    replace ((y - lo * Y) / (y - lo * Y + (hi * Y - y)) - (x - lo * X) / (x - lo * X + (hi * X - x)))
      with ((y / Y - x / X) / (hi - lo)) in B1 by (field; lra).
    replace ((hi * Y - y) / (hi * Y - y + (y - lo * Y)) - (hi * X - x) / (hi * X - x + (x - lo * X)))
      with (- ((y / Y - x / X) / (hi - lo))) in B2 by (field; lra).
    assert (C : Rabs ((y / Y - x / X) / (hi - lo)) <= (rho - 1) / (rho + 1)).
    { apply Rabs_le. split; [apply Ropp_le_cancel; rewrite Ropp_involutive; apply B2 | apply B1]; lra. }
    replace (y / Y - x / X) with ((y / Y - x / X) / (hi - lo) * (hi - lo)) by (field; lra).
    rewrite Rabs_mult, (Rabs_pos_eq (hi - lo)) by lra. apply Rmult_le_compat_r; lra.
  - assert (x = lo * X) as -> by lra. assert (y = lo * Y) as -> by lra.
    replace (lo * Y / Y - lo * X / X) with 0 by (field; lra). rewrite Rabs_R0. lra.
Qed.

Theorem softmax_error_tight eps :
  0 <= eps -> exists l,
  (forall t, In t l -> Rabs (snd (fst t)) <= eps /\ 0 <= snd t <= 1) /\
  output (perturbed l) - output (plain l) = tanh (eps / 2).
Proof.
  intros E. exists [(- eps, eps, 1); (0, - eps, 0)]. split.
  - intros t [<- | [<- | []]]; cbn [fst snd]; rewrite ?Rabs_Ropp, Rabs_pos_eq by exact E; lra.
  - rewrite tanh_half. unfold output, expsum, sum, perturbed, plain. cbn [map fold_right fst snd].
    replace (- eps + eps) with 0 by ring. rewrite Rplus_0_l, exp_0, exp_Ropp.
    pose proof (exp_pos eps). field. lra.
Qed.

(* A query against keys, per channel; keys with the exponents of their channels, put back from codes. *)
Fixpoint dot (q k : list R) : R :=
  match q, k with a :: q, b :: k => a * b + dot q k | _, _ => 0 end.
Fixpoint restored (es : list Z) (k : list R) : list R :=
  match es, k with e :: es, b :: k => value (code b e) e :: restored es k | _, _ => [] end.
Fixpoint logit_bound (q : list R) (es : list Z) : R :=
  match q, es with a :: q, e :: es => Rabs a * pow2 (e - 1) + logit_bound q es | _, _ => 0 end.

Theorem logit_error q es k :
  length k = length es -> Rabs (dot q (restored es k) - dot q k) <= logit_bound q es.
Proof.
  revert es k. induction q as [|a q IH]; intros es k L; simpl.
  - rewrite Rminus_0_r, Rabs_R0. lra.
  - destruct es as [|e es], k as [|b k]; try discriminate; simpl.
    + rewrite Rminus_0_r, Rabs_R0. lra.
    + injection L as L. specialize (IH es k L).
      replace (a * value (code b e) e + dot q (restored es k) - (a * b + dot q k))
        with (- (a * (b - value (code b e) e)) + (dot q (restored es k) - dot q k)) by ring.
      apply Rle_trans with (1 := Rabs_triang _ _). apply Rplus_le_compat; [|exact IH].
      rewrite Rabs_Ropp, Rabs_mult. apply Rmult_le_compat_l; [apply Rabs_pos | apply quantize_error].
Qed.

Lemma output_shift (l : list (R * R * R)) d :
  l <> [] -> (forall t, In t l -> Rabs (snd t - snd (fst t)) <= d) ->
  Rabs (output (map (fun t => (fst (fst t), snd t)) l) - output (map fst l)) <= d.
Proof.
  intros N H. rewrite !output_wsum, !map_map. cbn [fst].
  set (X := expsum (map (fun t => fst (fst t)) l)).
  assert (HX : 0 < X) by (apply expsum_pos; destruct l; easy).
  assert (K : Rabs (wsum (map (fun t => (fst (fst t), snd t)) l) - wsum (map fst l)) <= d * X).
  { unfold X. clear N HX X. induction l as [|[[a v] v'] l IH].
    - cbn. unfold wsum, expsum. cbn. rewrite Rminus_0_r, Rabs_R0. lra.
    - cbn [map fst snd]. rewrite !wsum_cons, expsum_cons.
      assert (I := IH (fun t T => H t (or_intror T))).
      specialize (H _ (or_introl eq_refl)). cbn [fst snd] in H. pose proof (exp_pos a) as Pa.
      match goal with |- Rabs (exp a * v' + ?p - (exp a * v + ?q)) <= _ =>
        replace (exp a * v' + p - (exp a * v + q)) with (exp a * (v' - v) + (p - q)) by ring end.
      apply Rle_trans with (1 := Rabs_triang _ _).
      rewrite Rabs_mult, (Rabs_pos_eq (exp a)) by lra. nra. }
  match goal with |- Rabs (?p / X - ?q / X) <= _ =>
    replace (p / X - q / X) with ((p - q) / X) by (field; lra); set (D := p - q) in * end.
  unfold Rdiv. rewrite Rabs_mult, (Rabs_pos_eq (/ X)) by (apply Rlt_le, Rinv_0_lt_compat, HX).
  apply Rmult_le_reg_r with X; [exact HX|]. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra. exact K.
Qed.

(* One query over tokens with a key and one channel of the value each, of which everything is quantised. *)
Theorem attention_error scale q es ev tokens lo hi :
  0 <= scale -> tokens <> [] ->
  (forall t, In t tokens -> length (fst t) = length es /\ lo <= snd t <= hi) ->
  Rabs (output (map (fun t => (scale * dot q (restored es (fst t)), value (code (snd t) ev) ev)) tokens) -
        output (map (fun t => (scale * dot q (fst t), snd t)) tokens)) <=
  tanh (scale * logit_bound q es / 2) * (hi - lo) + pow2 (ev - 1).
Proof.
  intros S N H.
  set (l1 := map (fun t : list R * R => (scale * dot q (restored es (fst t)), value (code (snd t) ev) ev)) tokens).
  set (l2 := map (fun t : list R * R => (scale * dot q (restored es (fst t)), snd t)) tokens).
  set (l3 := map (fun t : list R * R => (scale * dot q (fst t), snd t)) tokens).
  assert (A : Rabs (output l1 - output l2) <= pow2 (ev - 1)).
  { pose proof (output_shift
      (map (fun t => (scale * dot q (restored es (fst t)), snd t, value (code (snd t) ev) ev)) tokens)
      (pow2 (ev - 1))) as O.
    rewrite !map_map in O. cbn [fst snd] in O. apply O; [destruct tokens; easy|].
    intros u U. apply in_map_iff in U as (t & <- & T). cbn [fst snd].
    rewrite Rabs_minus_sym. apply quantize_error. }
  assert (B : Rabs (output l2 - output l3) <= tanh (scale * logit_bound q es / 2) * (hi - lo)).
  { pose proof (softmax_error
      (map (fun t => (scale * dot q (fst t), scale * (dot q (restored es (fst t)) - dot q (fst t)), snd t)) tokens)
      (scale * logit_bound q es) lo hi) as O.
    unfold perturbed, plain in O. rewrite !map_map in O. cbn [fst snd] in O.
    replace l2 with (map (fun t : list R * R =>
      (scale * dot q (fst t) + scale * (dot q (restored es (fst t)) - dot q (fst t)), snd t)) tokens) by (apply map_ext; intros t; f_equal; ring).
    apply O; [destruct tokens; easy|].
    intros u U. apply in_map_iff in U as (t & <- & T). cbn [fst snd]. destruct (H t T) as [L V].
    split; [|exact V]. rewrite Rabs_mult, (Rabs_pos_eq scale) by exact S.
    apply Rmult_le_compat_l; [exact S | now apply logit_error]. }
  pose proof (Rabs_triang (output l1 - output l2) (output l2 - output l3)) as T.
  replace (output l1 - output l2 + (output l2 - output l3)) with (output l1 - output l3) in T by ring.
  lra.
Qed.
